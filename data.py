"""Problems in, prompts out: the embedded tasks, Hugging Face hub ids and local files.

    problems = load("countdown", split="train")  # or "openai/gsm8k:main", "my_problems.jsonl", ...
    ids = render(tokenizer, problems[0], "qwen-math", hinted=True)  # token ids of the prompt with its hint
    python data.py --data openai/gsm8k:main --show 3       # shows any data set as the trainer will see it
    python -m machinery.hints --data D --out hinted.jsonl  # gives it hints
"""

import csv
import json
import re
import sys
import unicodedata
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import jinja2
import numpy as np

from machinery import tasks

EMBEDDED_MODEL = tasks.TASKS["countdown"].model


class UserError(ValueError):
    """Something the user can mend: a script prints the message as one line and exits with code 1."""


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

FILE_TYPES = (".jsonl", ".json", ".parquet", ".csv")
ANSWER = ("answer", "gold", "target", "final_answer")  # its column's names


def load(name: str, split: str = "train", limit: int | None = None, seed: int = 0) -> list[Problem]:
    """Problems of a data set, hints included: the data set's own, or in mathematics `solution_hint`.

    `name` is one of tasks.TASKS, a local .jsonl, .json, .parquet or .csv file (one split, whatever `split`
    says), or a Hugging Face hub id, with ":config" where the hub wants one ("openai/gsm8k:main"). `limit`
    keeps so many problems, picked by `seed`, in their order. Raises UserError for data that cannot be read.
    """
    if name in tasks.TASKS:
        if split not in ("train", "test"):
            raise UserError(f"{name} has the splits train and test, not {split!r}")
        rows = tasks.TASKS[name].rows(split)
    elif name.endswith(FILE_TYPES) or Path(name).exists():
        rows = read_file(Path(name))
    else:
        rows = _read_hub(name, split)
    problems = _problems(rows, name)
    if limit is not None:
        keep = np.random.default_rng(seed).permutation(len(problems))[:limit]
        problems = [problems[i] for i in sorted(keep)]
    return problems


def read_file(path: Path) -> list[dict]:
    """Rows of a file of FILE_TYPES. Raises UserError where there is none, or it cannot be read."""
    if not path.is_file():
        raise UserError(f"{path} is a folder: name a file" if path.exists() else f"no such file: {path}")
    if path.suffix not in FILE_TYPES:
        raise UserError(f"{path}: cannot read this kind of file, give one of {', '.join(FILE_TYPES)}")
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet  # comes with datasets; slow to import

            return pyarrow.parquet.read_table(path).to_pylist()
        if path.suffix == ".csv":
            csv.field_size_limit(2**30)
            with path.open(newline="", encoding="utf-8-sig") as file:
                return list(csv.DictReader(file))
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json" and text.lstrip().startswith("["):
            return json.loads(text)
    except (ValueError, OSError, csv.Error) as error:  # pyarrow's errors are ValueErrors or OSErrors
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"{path}, line {number}: not JSON ({getattr(error, 'msg', error)})") from None
    return rows


def _read_hub(name: str, split: str) -> list[dict]:
    import datasets  # slow to import, and the embedded task does not need it

    path, _, config = name.partition(":")
    try:
        return datasets.load_dataset(path, config or None, split=split).to_list()
    except Exception as error:  # the hub client raises many kinds; all of them end the run with what it said
        said = f"{type(error).__name__}: {' '.join(str(error).splitlines()[:2])}"
        raise UserError(f"{name!r} is no file, and the hub gave no split {split!r} of it: {said}") from error


def _problems(rows: list[dict], name: str) -> list[Problem]:
    if not rows:
        raise UserError(f"{name}: no rows")
    found = [_problem(row, f"{Path(name).stem}/{i}") for i, row in enumerate(rows)]
    problems = [problem for problem in found if problem]
    if not problems:
        columns = sorted(map(str, rows[0])) if isinstance(rows[0], dict) else type(rows[0]).__name__
        raise UserError(f"{name}: no problem can be read from the columns {columns}; {ACCEPTED}")
    if bad := [i for i, problem in enumerate(found) if not problem]:
        few = str(bad[:10])[1:-1]
        message = f"{name}: {len(bad)} of {len(rows)} rows have no question or no answer (rows {few})"
        if len(bad) > 0.01 * len(rows):
            raise UserError(f"{message}: mend or remove them; {ACCEPTED}")
        print(f"{message}: left out", file=sys.stderr)
    if len({p.id for p in problems}) < len(problems):  # ids pair the problems of two evaluations
        problems = [replace(p, id=f"{p.id}#{i}") for i, p in enumerate(problems)]
    return problems


def _problem(row: dict, default_id: str) -> Problem | None:
    """What the first reader that knows the row's columns reads; None without a question or an answer."""
    if not isinstance(row, dict):
        return None
    row = {str(key).lower(): value for key, value in row.items() if value is not None}
    id = str(_first(row, "id", "unique_id", "task_id", "problemid", default=default_id))
    hint, meta = row.get("hint"), {}
    if isinstance(hint, list):  # the Guide data set: a whole alternative chat
        hint = row["hint"] = _last_user(hint).removeprefix("Problem: ")
        meta = {"hinted_question": hint} if hint else {}
    problem = next(filter(None, (reader(row) for reader in READERS.values())), None)
    if not problem or not problem.question.strip() or not problem.answer.strip():
        return None
    return replace(problem, id=id, hint=hint or problem.hint, meta={**meta, **problem.meta})


# ---- readers: from a row to its problem, or to None where the columns are of another schema ------
# Keys are in lower case and no value is None. A row that is known but cannot be read has the answer "".

def _read_own(row: dict) -> Problem | None:
    if not {"question", "answer", "domain"} <= row.keys() or not isinstance(row.get("meta"), dict):
        return None
    return Problem("", row["question"], row["answer"], row["domain"], None, row.get("solution"), row["meta"])


def _read_completion(row: dict) -> Problem | None:
    if not {"prompt", "entry_point", "test"} <= row.keys():
        return None
    prompt, entry = row["prompt"], row["entry_point"].strip()
    # A program may define `check`, and must not be able to replace helpers in the prompt, which judge it.
    code = row["test"].replace("def check(", "def run_tests(") + f"\nrun_tests({entry})\n"
    tests = {"type": "assert", "code": code, "setup": prompt, "entry_point": entry}
    question = f"Complete this Python program. Answer with the whole program in one fenced block.\n\n{prompt}"
    answer = _reference_program(prompt, row["canonical_solution"]) if "canonical_solution" in row else ""
    return Problem("", question, answer, "code", solution=answer, meta={"tests": tests})


def _read_program(row: dict) -> Problem | None:
    tests = row.get("tests")
    if not isinstance(tests, dict) or tests.get("type") not in ("assert", "stdio"):
        return None
    question = _text(_first(row, "question", "prompt", "problem"))
    answer = _text(_first(row, "answer", "canonical_solution", "solution"))
    return Problem("", question, answer, "code", solution=answer, meta={"tests": tests})


def _read_choice(row: dict) -> Problem | None:
    choices = _first(row, "choices", "options")
    if choices is None or "question" not in row:
        return None
    choices = choices if isinstance(choices, list) else []  # text: it went through .csv
    letters = "ABCDEFGHIJ"[: len(choices)]
    answer = _text(row.get("answer"))
    if answer.isdecimal():
        answer = letters[int(answer) : int(answer) + 1]
    options = [f"\n{letter}. {choice}" for letter, choice in zip(letters, choices)]
    question = f"{row['question']}{''.join(options)}"
    return Problem("", question, answer if answer in letters else "", "choice", solution=_solution(row))


def _read_scibench(row: dict) -> Problem | None:
    if not {"problem_text", "answer_number"} <= row.keys():
        return None
    unit = _text(row.get("unit"))
    question = row["problem_text"] + (f" Answer in {unit}." if unit else "")
    meta = {"rel_tol": 0.05, "unit": unit}
    return Problem("", question, _text(row["answer_number"]), solution=_solution(row), meta=meta)


def _read_verl(row: dict) -> Problem | None:
    if not isinstance(row.get("reward_model"), dict):
        return None
    gold = row["reward_model"].get("ground_truth")
    row = {**row, "question": _last_user(row.get("prompt", "")).removeprefix("Problem: "), "answer": gold}
    if isinstance(gold, dict):
        row |= {column: gold[column] for column in ("question", "solution") if gold.get(column)}
        # `target` is a normalised copy of the box, and damaged in some rows: the box itself wins.
        row["answer"] = last_box(_solution(row) or "") or gold.get("target")
    return _read_math(row)


def _read_gsm8k(row: dict) -> Problem | None:
    solution, mark, answer = _text(_first(row, *ANSWER)).rpartition("\n#### ")
    if not mark:
        return None
    solution = re.sub(r"<<.*?>>", "", solution)  # a calculator's marks, which no one should learn to write
    return _read_math({**row, "answer": answer.replace(",", ""), "solution": solution})


def _read_math(row: dict) -> Problem | None:
    question, answer = _first(row, "question", "problem", "prompt"), _first(row, *ANSWER)
    if question is None or isinstance(answer, dict):
        return None
    question, answer, solution = str(_last_user(question)), _text(answer), _solution(row)
    answer = last_box(answer) or answer or last_box(solution or "") or ""
    if len(answer) > 300:  # a text, whose answer is somewhere inside: no guess
        answer = ""
    domain = row.get("domain") if row.get("domain") in ("math", "choice", "code") else "math"
    hint = solution_hint(question, solution, answer) if solution and not row.get("hint") else None
    meta = {"abs_tol": _text(row["error"])} if row.get("error") else {}  # OlympiadBench, numeric answers
    return Problem("", question, answer, domain, hint, solution, meta)


READERS = {  # the first that knows a row's columns reads it
    "question, answer, domain, meta, solution": _read_own,  # of machinery.tasks and machinery.hints
    "prompt, entry_point, test, canonical_solution": _read_completion,  # HumanEval, MBPP
    "question, tests ({type: assert, code} or {type: stdio, cases}), solution": _read_program,
    "question, choices | options (a list), answer (index or letter)": _read_choice,  # MMLU, MMLU-Pro
    "problem_text, answer_number, unit": _read_scibench,
    "prompt (chat list), reward_model.ground_truth": _read_verl,  # verl's files, Guide's as well
    "question, answer (the solution and, after ####, the answer)": _read_gsm8k,
    "question | problem | prompt, answer | gold | target | final_answer or \\boxed{} in solution": _read_math,
}
ACCEPTED = f"accepted columns (any case, hint and id with them): {'; or '.join(READERS)}"


def _first(row: dict, *names: str, default=None):
    """The value of the first of these columns that the row has."""
    return next((row[name] for name in names if name in row), default)


def _solution(row: dict) -> str | None:
    return _text(_first(row, "solution", "cot", "rationale")) or None


def _text(value) -> str:
    """A column's value as text: lists joined, 27.0 as 27."""
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(v) for v in value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def _last_user(chat) -> str:
    """The last user message of a chat list; anything else stands for itself."""
    if not isinstance(chat, list):
        return chat
    said = (m["content"] for m in reversed(chat) if isinstance(m, dict) and m.get("role") == "user")
    return next(said, "")


def _reference_program(prompt: str, body: str) -> str:
    """Prompt and body as one program; MBPP indents its bodies otherwise than its prompts' docstrings."""
    with suppress(SyntaxError):
        compile(prompt + body, "program", "exec")
        return prompt + body
    indent = re.search(r"^([ \t]+)\S", body, re.MULTILINE)[1]
    head, signature, docstring = prompt.rpartition("\ndef ")
    return head + signature + re.sub(r"\n[ \t]*(?=\S)", f"\n{indent}", docstring) + body


# ---- boxes and hints -----------------------------------------------------------------------------

def last_box(text: str) -> str | None:
    r"""Content of the last closed \boxed{...} or `\boxed 7` in the last 200 kB, with boxes in it opened.

    >>> last_box(r"so \boxed{\frac{1}{2}} or rather \boxed{ {3}, \boxed{4} }.")
    '{3}, 4'
    """
    text = text[-200_000:]
    boxes, open_braces = [], []  # (macro, argument, its end, macro's end); (macro, argument) or None
    for match in re.finditer(r"\\(?:boxed|fbox)\s*(?:(\{)|([^\s$;{}\\]+))|\\.|[{}]", text, re.DOTALL):
        if bare := match[2]:
            end = match.end() - (len(bare) - len(bare.rstrip(".,:")))  # a full stop, not a decimal point
            boxes.append((match.start(), match.start(2), end, end))
        elif match[1] or match[0] == "{":
            open_braces.append((match.start(), match.end()) if match[1] else None)
        elif match[0] == "}" and open_braces:
            box = open_braces.pop()
            if box and match.start() - box[1] <= 2_000:
                boxes.append((*box, match.start(), match.end()))
    if not boxes:
        return None
    _, start, end, _ = boxes.pop()
    inside = [box for box in boxes if box[0] >= start]
    content = ""
    for cut, cut_end in sorted([box[:2] for box in inside] + [box[2:] for box in inside]):
        content += text[start:cut]
        start = cut_end
    return (content + text[start:end]).strip()


def solution_hint(question: str, solution: str, answer: str) -> str | None:
    r"""The first half of a solution's sentences: never a box, nor the answer unless the question has it too.

    >>> solution_hint("What is 2+3?", r"Count on from 2. Three steps lead to 5. So \boxed{5}.", "5")
    'Count on from 2.'
    """
    solution = re.sub(r"\[asy\].*?(\[/asy\]|$)", "", solution, flags=re.DOTALL)
    # A sentence ends in a full stop, a paragraph or a displayed formula, and not inside a formula.
    sentences = [""]
    for part in re.split(r"(?<=[.!?])(?=\s)|(?<=[.!?][$)])(?=\s)|\n\n+|(?<=\\\])|(?<=\$\$)", solution):
        sentences[-1] += part
        if sentences[-1].count("$") % 2 == 0 and sentences[-1].count(r"\[") == sentences[-1].count(r"\]"):
            sentences.append("")
    sentences = [" ".join(sentence.split()) for sentence in sentences if sentence.strip()]
    kept = []
    for sentence in sentences[: len(sentences) // 2]:
        told = holds_answer(" ".join([*kept, sentence]), answer) and not holds_answer(question, answer)
        if told or "boxed" in sentence:
            break
        kept.append(sentence)
    return " ".join(kept) or None


def holds_answer(text: str, answer: str) -> bool:
    """Whether `answer` stands in `text` as a token of its own; spaces and sizes of brackets do not count."""

    def plain(s):
        s = re.sub(r"\\[,!;: ]|\\left(?!\w)|\\right(?!\w)|(?<=\\)[dt](?=frac)|(?<=\d),(?=\d{3}(?!\d))", "", s)
        s = s.replace("$", "\n")  # a border: in `is $-2$` nothing stands before the sign
        return re.sub(r"(\\[A-Za-z]+)", r"\1 ", s)  # the name of a command is no part of the number behind it

    pieces = re.findall(r"\\[A-Za-z]+|\S", plain(answer))
    left = r"(?<![\w.])" if answer[:1].isalnum() else ""
    if answer.startswith("-"):  # a sign, not the minus between two terms
        left = r"(?<![\w)\]}])(?<![\w)\]}] )"
    right = r"(?!\w|\.\d)" if answer[-1:].isalnum() else ""
    pattern = left + r"\s*".join(map(re.escape, pieces)) + right
    return bool(pieces) and re.search(pattern, plain(text)) is not None


# ---- prompts -------------------------------------------------------------------------------------

TEMPLATES = ("countdown", "plain", "qwen-math", "guide", "chat")
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
INSTRUCTIONS = {"math": BOXED, "choice": BOXED.replace("your final answer", "the letter of your answer")}


@dataclass(frozen=True)
class Prompt:
    """A problem as the policy reads it: token ids of the plain prompt and, with a hint, of the hinted one."""

    problem: Problem
    plain: list[int]
    hinted: list[int] | None


def prompt_text(problem: Problem, template: str, tokenizer=None, hinted: bool = False) -> str:
    """The prompt as text, plain or with the problem's hint.

    countdown, plain: the question and a line break. qwen-math: the ChatML text of the NSR paper. guide: the
    Guide paper's messages, chat: question and instruction as one user message, both through the tokenizer's
    chat template (guide is ChatML where it has none). A hint follows the question, unless the data set has a
    whole hinted question. Raises UserError for an unknown template and for `chat` without a chat template.
    """
    if template not in TEMPLATES:
        raise UserError(f"unknown template {template!r}: use one of {', '.join(TEMPLATES)}")
    question = problem.question
    if hinted:
        assert problem.hint, f"{problem.id} has no hint"
        space = " " if template == "countdown" else "\n\n"
        question = problem.meta.get("hinted_question") or f"{question}{space}Hint: {problem.hint}"
    if template in ("countdown", "plain"):
        return f"{question}\n"
    chat = {
        "qwen-math": [("system", "You are a helpful assistant."), ("user", f"{question}\n{BOXED}")],
        "guide": [("system", BOXED), ("user", f"Problem: {question}")],
        "chat": [("user", f"{question}\n{INSTRUCTIONS.get(problem.domain, '')}".strip())],
    }[template]
    if template == "qwen-math" or getattr(tokenizer, "chat_template", None) is None:
        if template == "chat":
            raise UserError("this tokenizer has no chat template: use --template plain, qwen-math or guide")
        turns = [f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in chat]
        return "".join(turns) + "<|im_start|>assistant\n"
    try:
        return tokenizer.apply_chat_template(
            [{"role": role, "content": text} for role, text in chat],
            tokenize=False, add_generation_prompt=True,
            enable_thinking=False,  # Qwen3 answers without thinking, as in the NSR paper
            date_string="26 Jul 2024",  # Llama 3 writes the date: not today's, or a resumed run sees another
        )
    except jinja2.TemplateError as error:  # some refuse a system message
        raise UserError(f"this tokenizer refuses --template {template} ({error}): use another") from error


def pick_template(template: str, name: str) -> str:
    """`auto` resolved: an embedded task's own, else chat."""
    auto = tasks.TASKS[name].template if name in tasks.TASKS else "chat"
    return auto if template == "auto" else template


def render(tokenizer, problem: Problem, template: str, hinted: bool = False) -> list[int]:
    """`prompt_text` as token ids, with the tokenizer's BOS where its own chat template does not write it."""
    text = prompt_text(problem, template, tokenizer, hinted)
    own = template in ("guide", "chat") and tokenizer.chat_template is not None
    return list(tokenizer(text, add_special_tokens=not own, verbose=False).input_ids)


def encode(problems: list[Problem], tokenizer, template: str, max_tokens: int) -> tuple[list[Prompt], dict]:
    """All prompts as token ids, and counts of what was left out: {"too_long": .., "hints_too_long": ..}.

    A plain prompt longer than `max_tokens` is left out with its problem, a hinted one alone. Raises UserError
    if none is left or the tokenizer loses text, as a custom one loaded as the wrong class silently does.
    """
    prompts, counts = [], {"too_long": 0, "hints_too_long": 0}
    for problem in problems:
        plain = render(tokenizer, problem, template)
        if len(plain) > max_tokens:
            counts["too_long"] += 1
            continue
        hinted = render(tokenizer, problem, template, hinted=True) if problem.hint else None
        if hinted is not None and len(hinted) > max_tokens:
            counts["hints_too_long"] += 1
            hinted = None
        prompts.append(Prompt(problem, plain, hinted))
    if not prompts:
        raise UserError(f"every prompt is longer than {max_tokens} tokens: raise --max-prompt")

    def squeeze(text):
        return re.sub(r"\s", "", unicodedata.normalize("NFC", text))

    for prompt in prompts[:100]:
        text, back = prompt_text(prompt.problem, template, tokenizer), tokenizer.decode(prompt.plain)
        if squeeze(text) not in squeeze(back):
            id, text, back = prompt.problem.id, text[:80], back[:80]
            raise UserError(f"the tokenizer does not give the prompt of {id} back: {back!r} for {text!r}")
    return prompts, counts


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
    data: str = "countdown"  # countdown, sea, a hub id (openai/gsm8k:main), or a local file
    split: str = "train"  # of a hub id or countdown
    show: int = 3  # how many problems
    seed: int = 0  # of the choice of problems
    template: Literal["auto", *TEMPLATES] = "auto"  # as in the training scripts
    model: str = EMBEDDED_MODEL  # whose tokenizer and chat template to use


def main() -> None:
    import tyro  # slow to import

    args = tyro.cli(Args, description=__doc__)
    problems = load(args.data, args.split)
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
    try:
        main()
    except (UserError, OSError) as error:  # OSError: no such --model
        sys.exit("error: " + " ".join(str(error).split("\n")[:2]))
