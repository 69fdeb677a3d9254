"""Problems in, prompts out: the embedded tasks, Hugging Face hub ids and local files.

    problems = load("countdown", split="train")  # or "openai/gsm8k:main", "my_problems.jsonl", ...
    ids = render(tokenizer, problems[0], "qwen-math", hinted=True)  # token ids of the prompt with its hint
    python data.py --data openai/gsm8k:main --show 3       # shows any data set as the trainer will see it
    python -m machinery.hints --data D --out hinted.jsonl  # gives it hints
"""

import hashlib
import json
import math
import re
import string
import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from machinery import reading, tasks
from machinery.command import UserError, run_command
from machinery.names import is_file, labels, names_of
from machinery.reading import BadRow, is_missing, last_box, read_file, solution_hint, text_of
from machinery.templates import BOXED, HELPFUL, PROMPTS, chat_text, squeeze

EMBEDDED_MODEL = tasks.TASKS["countdown"].model


@dataclass(frozen=True)
class Problem:
    """A problem with a verifiable answer. `hint`: guidance in words that guide_*.py may put in the prompt."""

    id: str
    question: str
    answer: str
    domain: str = "math"  # math | choice | code | countdown: picks the verifier
    hint: str | None = None
    solution: str | None = None
    meta: dict = field(default_factory=dict)


# ---- loading -------------------------------------------------------------------------------------

# Names of columns; the first one that is there and not empty is read.
QUESTION = ("question", "problem", "prompt", "input", "instruction", "messages", "conversations")
ANSWER = ("answer", "gold", "target", "final_answer", "expected_answer")
SOLUTION = ("solution", "cot", "rationale")
MEDIA = ("image", "images", "videos", "audios")  # columns without which the question would not be whole


def load(
    name: str, split: str = "train", limit: int | None = None, seed: int = 0, own_verifier: bool = False
) -> list[Problem]:
    """Problems of a data set, hints included: the data set's own, or in mathematics `solution_hint`.

    `name` is one of tasks.TASKS, a local file of FILE_TYPES (one split, whatever `split` says), or a Hugging
    Face hub id, with ":config" where the hub wants one ("openai/gsm8k:main"); or several of these with commas
    between. `split` may name a part of one: "train[:100]", "train[10%:]". `limit` keeps so many problems of
    each, picked by `seed`, in their order. With an `own_verifier` an answer may be missing, and `meta` has
    the row's other columns too. Raises UserError for data that cannot be read.
    """
    return list(chain.from_iterable(load_sets(name, split, limit, seed, own_verifier).values()))


def load_sets(
    names: str, split: str = "train", limit: int | None = None, seed: int = 0, own_verifier: bool = False
) -> dict[str, list[Problem]]:
    """What `load` loads, the problems of each data set by its label; of several each id begins with that."""
    every = names_of(names)
    if len(set(every)) < len(every):
        raise UserError(f"--data {names}: one data set twice")
    sets = {}
    for label, name in zip(labels(every), every):
        problems = _load_one(name, split, own_verifier)
        if limit is not None:
            keep = np.random.default_rng(seed).permutation(len(problems))[:limit]
            problems = [problems[i] for i in sorted(keep)]
        if len(every) > 1:
            problems = [replace(problem, id=f"{label}: {problem.id}") for problem in problems]
        sets[label] = problems
    return sets


def _load_one(name: str, split: str, own_verifier: bool) -> list[Problem]:
    if name in tasks.TASKS:
        whole = split.partition("[")[0]
        if whole not in ("train", "test"):
            raise UserError(f"{name} has the splits train and test, not {split!r}")
        rows = tasks.TASKS[name].rows(whole)
        numbers = reading.part_of(split, len(rows))
    elif is_file(name):
        rows = read_file(Path(name))
        numbers = reading.part_of(split, len(rows))
    else:
        rows = reading.read_hub(name, split, tasks.TASKS)
        numbers = range(len(rows))
    return _problems(rows, numbers, name, own_verifier)


def _problems(rows: list[dict], numbers: range, name: str, own_verifier: bool) -> list[Problem]:
    """The problems of the rows with these numbers."""
    if not numbers:
        raise UserError(f"{name}: no rows")
    problems, bad, stem = [], {}, Path(re.sub(r"\.gz$", "", name, flags=re.I)).stem
    for i in numbers:
        try:
            problems.append(_problem(rows[i], f"{stem}/{i}", own_verifier))
        except Exception as error:  # rows can be wrong in any way; every one is named
            bad.setdefault(reading.reason(error), []).append(i)
    if not problems:
        row = rows[numbers[0]]
        found = f"the columns {sorted(map(str, row))}" if isinstance(row, dict) else "such rows"
        why = "; ".join(list(bad)[:5])
        raise UserError(f"{name}: no problem can be read from {found}: {why}; {ACCEPTED}")
    reading.leave_out(bad, len(numbers), name, f"mend or remove them; {ACCEPTED}")
    if len({p.id for p in problems}) < len(problems):  # ids pair the problems of two evaluations
        problems = [replace(p, id=f"{p.id}#{i}") for i, p in enumerate(problems)]
    return problems


def _problem(given: dict, default_id: str, own_verifier: bool) -> Problem:
    """What the first reader that knows the row's columns reads. Raises BadRow, or what a reader raises."""
    if not isinstance(given, dict):
        raise given if isinstance(given, BadRow) else BadRow("no columns")
    row, meta = {}, {}
    for column, value in given.items():
        if value is not None and value == value:  # not a number is how pandas writes that there is none
            row[str(column).lower()] = value
    for column in MEDIA:
        if row.get(column):
            raise BadRow(f"something in its column {column!r}, and only text can be read")
    hint = row.get("hint")
    if reading.is_chat(hint):  # the Guide data set: a whole alternative chat
        hint = reading.chat_of(hint)[0].removeprefix("Problem: ")
        meta = {"hinted_question": hint} if hint else {}
    if hint is not None:
        hint = row["hint"] = reading.hint_of(hint)
    meta |= _unfold_chat(row)
    if own_verifier:  # which finds an object in `meta`, and needs no text of it
        row = {column: v for column, v in row.items() if column not in ANSWER or not isinstance(v, dict)}
        row.pop("error", None)  # a tolerance is for the built-in ones
    problem = next(filter(None, (reader(row) for reader in READERS.values())), None)
    if not problem or is_missing(problem.question):
        raise BadRow("no question")
    no_answer = is_missing(problem.answer) if problem.domain == "math" else not problem.answer.strip()
    if not own_verifier and no_answer:
        raise BadRow("no answer that can be read")
    if not own_verifier and problem.domain == "math" and len(problem.answer) > 300:
        raise BadRow("an answer of more than 300 characters")  # the answer is somewhere inside: no guess
    id = str(_first(row, "id", "unique_id", "task_id", "problemid", default=default_id))
    problem = replace(problem, id=id, hint=hint or problem.hint, meta={**meta, **problem.meta})
    if own_verifier:
        problem = replace(problem, meta={**_other_columns(given, problem), **problem.meta})
    json.dumps(vars(problem), ensure_ascii=False).encode()  # raises for what no file and no worker can take
    return problem


def _unfold_chat(row: dict) -> dict:
    """Puts the text of the question in the place of a chat; what stands before it there, for `meta`."""
    columns = ("prompt", *QUESTION) if "reward_model" in row else QUESTION
    column = next((column for column in columns if row.get(column) not in (None, "")), None)
    if column is None:
        return {}
    row[column], earlier, reply = reading.chat_of(row[column])
    if column == "input" and row.get("instruction"):  # Alpaca's
        row["input"] = f"{row['instruction']}\n\n{row['input']}"
    if reply and not _solution(row):
        row["solution"] = reply
    return {"earlier_messages": earlier} if earlier else {}


def _other_columns(row: dict, problem: Problem) -> dict:
    """What the problem does not have as the row has it, as far as JSON can hold it."""
    found = {}
    for column, value in row.items():
        name = str(column).lower()
        if hasattr(problem, name) and getattr(problem, name) == value:
            continue
        if name in ("earlier_messages", "hinted_question"):  # which make the prompt, where a reader sets them
            continue
        with suppress(TypeError, ValueError):  # pictures, dates, half a surrogate pair
            json.dumps(value, ensure_ascii=False).encode()
            found[column] = value
    return found


# ---- readers: from a row to its problem, or to None where the columns are of another schema ------
# Keys are in lower case and no value is None. A row that is known but cannot be read has the answer "".

def _read_own(row: dict) -> Problem | None:
    if not {"question", "domain"} <= row.keys() or not isinstance(row.get("meta"), dict):
        return None
    answer = row.get("answer", "")
    return Problem("", row["question"], answer, row["domain"], None, row.get("solution"), row["meta"])


def _read_completion(row: dict) -> Problem | None:
    if not {"prompt", "entry_point", "test"} <= row.keys():
        return None
    prompt, entry = row["prompt"], row["entry_point"].strip()
    # A program may define `check`, and must not be able to replace helpers in the prompt, which judge it.
    code = re.sub(r"^(def )?check\(", r"\1run_tests(", row["test"], flags=re.MULTILINE)
    code += f"\nrun_tests({entry})\n"
    tests = {"type": "assert", "code": code, "setup": prompt, "entry_point": entry}
    question = f"Complete this Python program. Answer with the whole program in one fenced block.\n\n{prompt}"
    answer = reading.program_of(prompt, row["canonical_solution"]) if "canonical_solution" in row else ""
    return Problem("", question, answer, "code", solution=answer, meta={"tests": tests})


def _read_program(row: dict) -> Problem | None:
    tests = row.get("tests")
    if not isinstance(tests, dict) or tests.get("type") not in ("assert", "stdio"):
        return None
    question = text_of(_first(row, *QUESTION))
    answer = text_of(_first(row, "answer", "canonical_solution", "solution"))
    return Problem("", question, answer, "code", solution=answer, meta={"tests": tests})


def _read_choice(row: dict) -> Problem | None:
    question, choices = _first(row, *QUESTION), _first(row, "choices", "options")
    if question is None or not choices:
        return None
    if not isinstance(choices, list):  # text: it went through .csv
        raise BadRow("choices that are no list")
    letters = string.ascii_uppercase[: len(choices)]
    answer = text_of(_first(row, *ANSWER))
    if answer.isdecimal():
        answer = letters[int(answer) : int(answer) + 1]
    options = [f"\n{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)]
    question = f"{text_of(question)}{''.join(options)}"
    return Problem("", question, answer if answer in list(letters) else "", "choice", solution=_solution(row))


def _read_scibench(row: dict) -> Problem | None:
    if not {"problem_text", "answer_number"} <= row.keys():
        return None
    unit = text_of(row.get("unit"))
    question = row["problem_text"] + (f" Answer in {unit}." if unit else "")
    meta = {"rel_tol": 0.05, "unit": unit}
    return Problem("", question, _gold({"answer": row["answer_number"]}), solution=_solution(row), meta=meta)


def _read_verl(row: dict) -> Problem | None:
    if not isinstance(row.get("reward_model"), dict):
        return None
    gold = row["reward_model"].get("ground_truth")
    row = {**row, "question": row.get("prompt", "").removeprefix("Problem: "), "answer": gold}
    if isinstance(gold, dict):
        row |= {column: gold[column] for column in ("question", "solution") if gold.get(column)}
        # `target` is a normalised copy of the box, and damaged in some rows: the box itself wins.
        row["answer"] = last_box(_solution(row) or "") or gold.get("target")
    return _read_math(row)


def _read_gsm8k(row: dict) -> Problem | None:
    text = _gold(row) or _solution(row) or ""
    match = re.search(r"(?:^|\n)####[ \t]*([^\n]+)$", text)
    box = last_box(text[: match.start()]) if match else None
    if not match or (box and box != match[1].strip()):  # a heading: the answer is in the box
        return None
    # Marks of a calculator, which no one should learn to write.
    solution = re.sub(r"<<.*?>>", "", text[: match.start()])
    return _read_math({**row, "answer": re.sub(r"(?<=\d),(?=\d{3})", "", match[1]), "solution": solution})


def _read_math(row: dict) -> Problem | None:
    question = _first(row, *QUESTION)
    if question is None:
        return None
    answer, solution = reading.answer_of(_gold(row)), _solution(row)
    answer = last_box(answer) or answer or last_box(solution or "") or ""
    domain = row.get("domain") if row.get("domain") in ("math", "choice", "code") else "math"
    hint = solution_hint(question, solution, answer) if solution and not row.get("hint") else None
    error = reading.tolerance_of(row.get("error"))  # OlympiadBench, numeric answers
    meta = {"abs_tol": error} if error else {}
    return Problem("", question, answer, domain, hint, solution, meta)


READERS = {  # the first that knows a row's columns reads it
    "question, answer, domain, meta, solution": _read_own,  # of machinery.tasks and machinery.hints
    "prompt, entry_point, test, canonical_solution": _read_completion,  # HumanEval, MBPP
    "question, tests ({type: assert, code} or {type: stdio, cases}), solution": _read_program,
    "prompt (chat list), reward_model.ground_truth": _read_verl,  # verl's files, Guide's as well
    "question (as below), choices | options (a list), answer (index or letter)": _read_choice,  # MMLU
    "problem_text, answer_number, unit": _read_scibench,
    "question, answer | solution (with the answer after ####)": _read_gsm8k,
    f"{' | '.join(QUESTION)} (text or chat), {' | '.join(ANSWER)} or \\boxed{{}} in solution": _read_math,
}
ACCEPTED = f"accepted columns (any case, hint and id with them): {'; or '.join(READERS)}"
ACCEPTED += "; with a --verifier of your own no answer is needed"


def _first(row: dict, *names: str, default=None):
    """The value of the first of these columns that the row has, and that is not empty."""
    return next((row[name] for name in names if row.get(name) not in (None, "")), default)


def _gold(row: dict) -> str:
    """The first answer of mathematics that there is; "None" is none."""
    answers = (text_of(row.get(name)) for name in ANSWER)
    return next((answer for answer in answers if not is_missing(reading.answer_of(answer))), "")


def _solution(row: dict) -> str | None:
    solutions = (text_of(row.get(name)) for name in SOLUTION)
    return next((solution for solution in solutions if not is_missing(solution)), None)


# ---- prompts -------------------------------------------------------------------------------------

TEMPLATES = ("countdown", "plain", "guide", "chat", *PROMPTS)
SYSTEM = dict.fromkeys(PROMPTS, HELPFUL) | {"guide": BOXED, "guide-llama": ""}  # what such a prompt has
INSTRUCTIONS = {"math": BOXED, "choice": BOXED.replace("your final answer", "the letter of your answer")}


@dataclass(frozen=True)
class Prompt:
    """A problem as the policy reads it: token ids of the plain prompt and, with a hint, of the hinted one."""

    problem: Problem
    plain: list[int]
    hinted: list[int] | None


def prompt_text(problem: Problem, template: str, tokenizer=None, hinted: bool = False) -> str:
    """The prompt as text, plain or with the problem's hint.

    countdown, plain: the question and a line break. *-math, guide-llama: machinery/templates.py. guide: the
    Guide paper's messages, chat: question and instruction as one user message, both through the tokenizer's
    chat template (guide is ChatML where it has none). A hint follows the question, unless the data set has a
    whole hinted question. Of a row that is a chat, `chat` has all messages before the question; the others
    have its system message only, before the question in countdown and plain, and SYSTEM's in its place in
    the rest. Raises UserError for an unknown template, for `chat` without a chat template and for one that
    loses text; BadRow for a row of several turns without `chat`.

    >>> prompt_text(Problem("p", "What is 2+3?", "5", hint="Count on from 2."), "plain", hinted=True)
    'What is 2+3?\\n\\nHint: Count on from 2.\\n'
    """
    if template not in TEMPLATES:
        raise UserError(f"unknown template {template!r}: use one of {', '.join(TEMPLATES)}")
    question, earlier = problem.question, problem.meta.get("earlier_messages", [])
    if hinted:
        assert problem.hint, f"{problem.id} has no hint"
        space = " " if template == "countdown" else "\n\n"
        question = problem.meta.get("hinted_question") or f"{question}{space}Hint: {problem.hint}"
    if template != "chat" and any(message["role"] != "system" for message in earlier):
        raise BadRow("a chat of several turns, which takes --template chat")
    if template in ("countdown", "plain"):
        told = [message["content"] for message in earlier if message["content"].strip()]
        return "\n\n".join([*told, f"{question}\n"])
    if template in PROMPTS:
        return PROMPTS[template].replace("QUESTION", question)
    if template == "chat":
        boxed = any("\\boxed" in message["content"] for message in earlier)  # the instruction, or one like it
        instruction = "" if boxed else INSTRUCTIONS.get(problem.domain, "")
        messages = [*earlier, {"role": "user", "content": f"{question}\n{instruction}".strip()}]
    else:
        messages = [{"role": "system", "content": BOXED}, {"role": "user", "content": f"Problem: {question}"}]
    if getattr(tokenizer, "chat_template", None) is None:
        if template == "chat":
            raise UserError("this tokenizer has no chat template: use --template plain, qwen-math or guide")
        turns = [f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages]
        return "".join(turns) + "<|im_start|>assistant\n"
    return chat_text(tokenizer, messages, problem.id)


def pick_template(template: str, names: str) -> str:
    """`auto` resolved: an embedded task's own, else chat. UserError for several data sets that differ in it.
    """
    if template != "auto":
        return template
    auto = {name: tasks.TASKS[name].template if name in tasks.TASKS else "chat" for name in names_of(names)}
    if len(set(auto.values())) > 1:
        told = ", ".join(f"{name}: {own}" for name, own in auto.items())
        raise UserError(f"--data {names}: these want different prompts ({told}): give one --template for all")
    return auto[names_of(names)[0]]


def render(tokenizer, problem: Problem, template: str, hinted: bool = False) -> list[int]:
    """`prompt_text` as token ids, with the tokenizer's BOS where its own chat template does not write it."""
    text = prompt_text(problem, template, tokenizer, hinted)
    own = template in ("guide", "chat") and tokenizer.chat_template is not None
    return list(tokenizer(text, add_special_tokens=not own, verbose=False).input_ids)


def encode(
    problems: list[Problem], tokenizer, template: str, max_tokens: int, max_response=0, positions=math.inf
) -> tuple[list[Prompt], dict]:
    """All prompts as token ids, and counts of what was left out: {"too_long": .., "hints_too_long": ..}.

    A plain prompt longer than `max_tokens`, or that leaves less than `max_response` of the model's
    `positions`, is left out with its problem, a hinted one alone. Raises UserError if none is left or the
    tokenizer loses text, as a custom one loaded as the wrong class silently does.
    """
    longest = min(max_tokens, positions - max_response)
    prompts, counts, bad = [], {"too_long": 0, "hints_too_long": 0}, {}
    for problem in problems:
        try:
            plain = render(tokenizer, problem, template)
            hinted = render(tokenizer, problem, template, hinted=True) if problem.hint else None
        except Exception as error:  # tokenizers raise many kinds
            if isinstance(error, UserError) and not isinstance(error, BadRow):
                raise  # the template's fault, not the row's
            bad.setdefault(reading.reason(error), []).append(problem.id)
            continue
        if len(plain) > longest:
            counts["too_long"] += 1
            continue
        if hinted is not None and len(hinted) > longest:
            counts["hints_too_long"] += 1
            hinted = None
        prompts.append(Prompt(problem, plain, hinted))
    reading.leave_out(bad, len(problems), "prompts", "mend or remove them, or use another --template")
    if not prompts and longest < max_tokens:
        too_many = f"every prompt and {max_response} tokens for the response exceed the model's {positions}"
        raise UserError(f"{too_many} positions: lower --max-response (--max-tokens of evaluate.py)")
    if not prompts:
        raise UserError(f"every prompt is longer than {max_tokens} tokens: raise --max-prompt")
    for prompt in prompts[:100]:
        text, back = prompt_text(prompt.problem, template, tokenizer), tokenizer.decode(prompt.plain)
        if squeeze(text) not in squeeze(back):
            id, text, back = prompt.problem.id, text[:80], back[:80]
            raise UserError(f"the tokenizer does not give the prompt of {id} back: {back!r} for {text!r}")
    if template in SYSTEM:
        given = {m["content"] for prompt in prompts for m in prompt.problem.meta.get("earlier_messages", [])}
        if given - {SYSTEM[template]}:
            print(f"--template {template}: its system message stands in place of the data's", file=sys.stderr)
    return prompts, counts


def fingerprint(prompts: list[Prompt]) -> str:
    """A hash of what a run takes from its data: the problems, their order, and which hints are used."""
    sha = hashlib.sha256()
    for prompt in prompts:
        sha.update(json.dumps([vars(prompt.problem), prompt.hinted is not None]).encode())
    return sha.hexdigest()


def draw(n_problems: int, count: int, step: int, seed: int, stream: int = 0) -> list[int]:
    """Indices of a step's problems: a pure function of its arguments, so a resumed run goes on as before.

    Positions step * count ... of an endless sequence of reshuffled epochs. `stream` 1, 2 .. are refills of a
    step, from sequences of their own, without what the earlier ones drew.
    """
    start, earlier = step * count, set()
    epochs = range(start // n_problems, (start + count - 1) // n_problems + 1)
    for s in range(stream + 1):
        order = [np.random.default_rng([seed, s, epoch]).permutation(n_problems) for epoch in epochs]
        drawn = [i for i in np.concatenate(order)[start % n_problems :][:count].tolist() if i not in earlier]
        earlier.update(drawn)
    return drawn


# ---- command line --------------------------------------------------------------------------------

@dataclass
class Args:
    data: str = "sea"  # sea, countdown, a hub id (openai/gsm8k:main), a local file; or several, a,b
    split: str = "train"  # of a hub id or an embedded task; a part of any: train[:100]
    verifier: str = ""  # as in the training scripts: an answer may be missing
    show: int = 3  # how many problems
    seed: int = 0  # of the choice of problems
    template: Literal["auto", *TEMPLATES] = "auto"  # as in the training scripts
    model: str = EMBEDDED_MODEL  # whose tokenizer and chat template to use


def main() -> None:
    import tyro  # slow to import

    args = tyro.cli(Args, description=__doc__)
    problems = load(args.data, args.split, own_verifier=bool(args.verifier))
    print(f"{args.data}: {len(problems)} problems, {sum(bool(p.hint) for p in problems)} with a hint")
    from transformers import AutoTokenizer  # slower yet, and of no use where the data cannot be read

    template = pick_template(args.template, args.data)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    for i in draw(len(problems), min(args.show, len(problems)), 0, args.seed):
        problem = problems[i]
        print(f"\n=== {problem.id} ({problem.domain})   answer: {problem.answer}")
        hinted = prompt_text(problem, template, tokenizer, hinted=True) if problem.hint else "no hint"
        print(f"--- plain prompt\n{prompt_text(problem, template, tokenizer)}\n--- hinted prompt\n{hinted}")


if __name__ == "__main__":
    run_command(main)
