"""rollouts.jsonl: some groups of each step, whole, and what every token of them was worth to the update.

One row a line. `python -m machinery.look runs/RUN` shows them; docs/running.md says what they take.
"""

import math

import torch

from machinery.ranks import gather

GROUPS = 2  # of a step, and those that `chosen` adds
TOKENS = 16384  # of a step, shared out evenly among its rows: the rest of a longer response is text alone


def keep(rows: list, old_logp_NT: torch.Tensor, values_NT: dict[str, torch.Tensor]) -> None:
    """Leaves with each row where `update_numbers` finds its numbers: few rows of a step will be shown."""
    if not rows:
        return
    kept_NT = {"old_logp": old_logp_NT, "ratio": values_NT["ratio"], "clipped": values_NT["clip_fraction"]}
    if "push_plain" in values_NT:
        kept_NT["push"] = values_NT["push_plain"] + values_NT["push_guided"]
    kept_NT = {name: value_NT.detach() for name, value_NT in kept_NT.items()}  # keeps no graph alive
    for i, row in enumerate(rows):
        row.trained = kept_NT, i


def chosen(groups: list[list]) -> list[list]:
    """The groups of a step that are kept: its first ones, which are in random order; where none of these has
    guided rows, the first that has, and where none has an advantage, the first that has: at most two more."""
    found = groups[:GROUPS]
    for is_wanted in (is_guided, teaches):
        if not any(is_wanted(group) for group in found):
            found = [*found, *[group for group in groups if is_wanted(group)][:1]]
    return found


def is_guided(group: list) -> bool:
    return any(row.guided for row in group)


def teaches(group: list) -> bool:
    return any(advantages(row).any() for row in group)


def lines(groups: list[list], tokenizer) -> list[dict]:
    """Rows as a person reads them, with the numbers of their tokens. All ranks call it: each has its own."""
    rows = [(number, row) for number, group in enumerate(chosen(groups)) for row in group]
    most = TOKENS // max(1, len(rows))
    mine = [(i, update_numbers(row, most)) for i, (_, row) in enumerate(rows) if row.trained]
    trained = dict(gather(mine))
    found = []
    for i, (number, row) in enumerate(rows):
        found.append({
            "group": number, "problem": row.problem.id, "prompt": tokenizer.decode(row.prompt),
            "guided": row.guided, "sampled_from": tokenizer.decode(row.sampled_from),
            "completion": tokenizer.decode(row.response, skip_special_tokens=True),  # what was judged
            "response": tokenizer.decode(row.response), "answer": row.problem.answer,
            "verdict": row.verdict.why, "reward": row.reward, "finished": row.finished,
            "advantage": rounded(advantages(row).mean()[None])[0], "n_tokens": len(row.response),
            "tokens": pieces(tokenizer, row.response[:most]),
            "engine_logp": rounded(torch.as_tensor(row.engine_logp)[:most]), **trained.get(i, {}),
        })
    return found


def advantages(row) -> torch.Tensor:
    """[T], or [1] where the tokens of a response share it."""
    return torch.atleast_1d(torch.as_tensor(row.advantage, dtype=torch.float32))


def update_numbers(row, most: int) -> dict[str, list]:
    """Of the first `most` tokens of a row that was trained on, in the update of its mini-batch.

    old_logp: log-prob under the policy that sampled it, given the prompt that it was sampled from. ratio: of
    the policy, given the plain prompt, to that. weight: what grad log pi has beside the advantage, 0 where
    the clip acts, None where the advantage is 0. A critic's rows have advantages and values, token by token.
    """
    (kept_NT, i), T = row.trained, min(most, len(row.response))
    numbers = {name: value_NT[i, :T].float().cpu() for name, value_NT in kept_NT.items()}
    advantage_T = advantages(row)[:most]
    if "push" in numbers:
        weight_T = numbers["push"] / advantage_T  # 0 / 0 is no number
    else:
        weight_T = numbers["ratio"] * (1 - numbers["clipped"])
    found = {"old_logp": rounded(numbers["old_logp"]), "ratio": rounded(numbers["ratio"]),
             "weight": rounded(weight_T)}
    if getattr(row, "values", None) is not None:
        found |= {"advantages": rounded(advantage_T), "values": rounded(row.values[:most])}
    return found


def rounded(values_T: torch.Tensor) -> list:
    """Four digits each; None for what is no finite number, which JSON has no word for."""
    return [float(f"{x:.4g}") if math.isfinite(x) else None for x in values_T.tolist()]


def pieces(tokenizer, ids: list[int]) -> list[str]:
    """The text of each token: together they are the decoded response, where a token alone may be none.

    Of a character that takes several tokens, the last one has the whole, the others are empty.
    """
    found, start, end = [], 0, 0  # of the last tokens that made whole characters
    for i in range(len(ids)):
        before = tokenizer.decode(ids[start:end])
        text = tokenizer.decode(ids[start : i + 1])[len(before) :]
        if text.endswith("\ufffd") and i + 1 < len(ids) and i - end < 8:  # longer is no character
            found.append("")
        else:
            found.append(text)
            start, end = end, i + 1
    return found
