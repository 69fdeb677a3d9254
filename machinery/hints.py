"""A tool: gives the problems of a data set hints that do not give the answer away, and writes them to a file.

    python -m machinery.hints --data D --out hinted.jsonl                       # halves of the solutions
    python -m machinery.hints --data D --out hinted.jsonl --by model --model M  # guidance of a language model

Train on them with --data hinted.jsonl. A run that was stopped goes on when it is started again.
"""

import json
import os
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from data import EMBEDDED_MODEL, Problem, UserError, load
from machinery.command import run_command
from machinery.reading import holds_answer, solution_hint
from machinery.templates import chat_text

GUIDANCE = """\
Here is a problem and its reference solution. \
Write two or three sentences of guidance for a student: which idea
to use and how to begin. \
Do not give the final answer, do not carry out the last steps, and do not write \\boxed.

Problem: {question}

Reference solution: {solution}

Guidance:"""


@dataclass
class Args:
    data: str = "countdown"  # countdown, sea, a hub id (openai/gsm8k:main), or a local file
    split: str = "train"  # of a hub id or an embedded task; a part of any: train[:100]
    by: Literal["solution", "model"] = "solution"  # from the solution's first half, or by --model
    model: str = EMBEDDED_MODEL  # hub id or folder of the model that writes the hints
    out: str = ""  # .jsonl file to write; an unfinished one is continued
    device: str = "auto"  # of the model
    batch: int = 64  # problems that the model reads at once
    tries: int = 3  # for a hint that does not give the answer away
    max_tokens: int = 256  # of a hint


def leaks(hint: str, problem: Problem) -> bool:
    """Whether a hint has a box, or the answer unless the question has it too."""
    told = holds_answer(hint, problem.answer) and not holds_answer(problem.question, problem.answer)
    return told or "boxed" in hint


def no_hints(problems: list[Problem]) -> list[None]:
    """None for each problem: `make_hints` then takes the solutions."""
    return [None] * len(problems)


def model_hints(model: str, device: str, tries: int, max_tokens: int):
    """hints(problems) -> a language model's guidance for each; None where all `tries` leak or are empty."""
    from machinery.sampler import Sampler  # slow to import, and solutions need none

    sampler = Sampler(model, device=device, use="sampled from")

    def hints(problems: list[Problem]) -> list[str | None]:
        prompts = {problem.id: _guidance_prompt(problem, sampler.tokenizer) for problem in problems}
        fit = [p for p in problems if len(prompts[p.id]) + max_tokens <= sampler.positions]
        found = {}
        for turn in range(tries):
            left = [problem for problem in fit if problem.id not in found]
            if not left:
                break
            # The seed is of the first problem and the turn: a continued run writes what it would have.
            seed = (zlib.crc32(problems[0].id.encode()), turn)
            asked = [prompts[problem.id] for problem in left]
            samples = sampler.generate(asked, 1, 0.7, max_tokens, seed, top_p=0.95)
            for problem, (sample,) in zip(left, samples):
                hint = " ".join(sample.text.rpartition("</think>")[2].split())
                if hint and sample.finished and not leaks(hint, problem):
                    found[problem.id] = hint
        return [found.get(problem.id) for problem in problems]

    return hints


def _guidance_prompt(problem: Problem, tokenizer) -> list[int]:
    text = GUIDANCE.format(question=problem.question, solution=problem.solution or "(none)")
    own = tokenizer.chat_template is not None
    if own:
        text = chat_text(tokenizer, [{"role": "user", "content": text}], problem.id)
    return list(tokenizer(text, add_special_tokens=not own).input_ids)


def make_hints(problems: list[Problem], out: Path, hints, batch: int) -> None:
    """Writes every problem with a hint to `out`, a JSON object a line, and says how many have none.

    `hints(problems)` gives one or None for each. None falls back to the first half of the solution, and where
    that gives nothing to the hint that came with the problem. An existing `out` is continued.
    Raises UserError if `out` is of other problems.
    """
    done = _rows_so_far(problems, out)
    with_hint = sum(bool(row["hint"]) for row in done)
    fallbacks = 0
    with out.open("a", encoding="utf-8") as file:
        for start in tqdm(range(len(done), len(problems), batch), desc="hints", disable=None):
            part = problems[start : start + batch]
            for problem, hint in zip(part, hints(part)):
                if hint is None and problem.solution and problem.domain != "code":
                    hint = solution_hint(problem.question, problem.solution, problem.answer)
                    fallbacks += 1
                row = asdict(problem)
                if hint:
                    assert problem.domain == "countdown" or not leaks(hint, problem), problem.id
                    row["hint"] = hint
                    row["meta"].pop("hinted_question", None)
                with_hint += bool(row["hint"])
                file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
    none = len(problems) - with_hint
    said = f"{out}: {len(problems)} problems"
    if done:
        said += f", {len(done)} of them from an earlier run"
    said += f"; {none} without a hint ({none / len(problems):.1%})"
    if hints is not no_hints:
        said += f"; {fallbacks} from the solution instead of the model"
    print(said)


def _rows_so_far(problems: list[Problem], out: Path) -> list[dict]:
    """The whole lines of an unfinished `out`, as rows; half a line at its end is cut off, and made again."""
    if not out.exists():
        return []
    text = out.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    try:
        rows = [json.loads(line) for line in whole.splitlines()]
        same = [row["id"] for row in rows] == [problem.id for problem in problems[: len(rows)]]
    except (ValueError, TypeError, KeyError):
        same = False
    if not same:
        raise UserError(f"{out} exists and holds other rows: give another --out, or remove it")
    os.truncate(out, len(whole))
    return rows


def main() -> None:
    import tyro  # slow to import

    args = tyro.cli(Args, description=__doc__)
    out = Path(args.out)
    if out.suffix != ".jsonl" or not out.resolve().parent.is_dir():
        raise UserError("give --out FILE.jsonl in a folder that exists")
    problems = load(args.data, args.split)
    if args.by == "model":
        hints = model_hints(args.model, args.device, args.tries, args.max_tokens)
        make_hints(problems, out, hints, args.batch)
    else:
        make_hints(problems, out, no_hints, 1000)


if __name__ == "__main__":
    run_command(main)
