"""Problems in, prompts out: the built-in Countdown task, Hugging Face hub ids and local files.

    from data import load, render
    problems = load("countdown", split="train")           # or "openai/gsm8k:main", "my_problems.jsonl", ...
    ids = render(tokenizer, problems[0], "qwen-math")      # token ids of the plain prompt
    ids = render(tokenizer, problems[0], "qwen-math", hinted=True)

Look at any data set as the trainer will see it:  python data.py --data openai/gsm8k:main --show 3
Give it hints:  python data.py --data D --make-hints solution --out hinted.jsonl     (or: --make-hints model --model M)
"""

import argparse
import csv
import itertools
import json
import os
import random
import re
import sys
import unicodedata
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

import jinja2
import numpy as np
from tqdm import tqdm

EMBEDDED_MODEL = str(Path(__file__).resolve().parent / "assets/countdown")  # whatever the working folder is


class UserError(ValueError):
    """Something the user can mend: a script prints the message as one line and exits with code 1."""


@dataclass(frozen=True)
class Problem:
    """One problem with a verifiable answer. `hint` is guidance in words that a guide_* script may put in the prompt."""

    id: str
    question: str
    answer: str
    domain: str = "math"  # math | choice | code | countdown: picks the verifier
    hint: str | None = None
    solution: str | None = None
    meta: dict = field(default_factory=dict)


# ---- Countdown: "Use 3, 7, 12 to make 33." -> "7*3=21\n21+12=33\n" ---------------------------------------------------

COUNTDOWN_MAX = 60  # no value on the way may be larger, and none below 1
COUNTDOWN_TARGETS = range(20, 61)
COUNTDOWN_NUMBERS = range(1, 16)
COUNTDOWN_TEST = 256  # problems held out from the base model's pre-training and from RL


def countdown_moves(numbers: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """Every legal move with the numbers that are left after it.

    >>> countdown_moves((3, 7))
    [('7+3=10', (10,)), ('7-3=4', (4,)), ('7*3=21', (21,))]
    """
    moves = {}
    for i, j in itertools.permutations(range(len(numbers)), 2):
        a, b = numbers[i], numbers[j]
        if a < b:
            continue
        rest = tuple(n for k, n in enumerate(numbers) if k not in (i, j))
        for op, value in (("+", a + b), ("-", a - b), ("*", a * b), ("/", a // b if a % b == 0 else 0)):
            if 1 <= value <= COUNTDOWN_MAX:
                moves.setdefault(f"{a}{op}{b}={value}", (*rest, value))
    return list(moves.items())


def countdown_solutions(numbers: tuple[int, ...], target: int) -> list[str]:
    """Every trace of legal moves that uses all numbers and ends in `target`.

    >>> countdown_solutions((3, 7, 12), 33)
    ['7*3=21\\n21+12=33\\n']
    """
    if len(numbers) == 1:
        return [""] if numbers[0] == target else []
    return [
        f"{move}\n{rest}" for move, left in countdown_moves(numbers) for rest in countdown_solutions(left, target)
    ]


@cache
def _countdown_pool() -> tuple[Problem, ...]:
    """All solvable problems in one fixed shuffled order; the first COUNTDOWN_TEST of them are the test split."""
    rng = random.Random(20250612)
    pool = []
    for numbers in itertools.combinations_with_replacement(COUNTDOWN_NUMBERS, 3):
        ends = {last for _, left in countdown_moves(numbers) for _, (last,) in countdown_moves(left)}
        for target in sorted(ends.intersection(COUNTDOWN_TARGETS)):
            shown = rng.sample(numbers, k=3)
            solution = rng.choice(countdown_solutions(tuple(shown), target))
            pool.append(
                Problem(
                    id="countdown/" + "-".join(map(str, (*numbers, target))),
                    question=f"Use {', '.join(map(str, shown))} to make {target}.",
                    answer=str(target),
                    domain="countdown",
                    hint=f"start with {solution.split('=')[0]}.",
                    solution=solution,
                    meta={"numbers": shown, "target": target},
                )
            )
    rng.shuffle(pool)
    return tuple(pool)



# ---- loading ---------------------------------------------------------------------------------------------------------

FILE_TYPES = (".jsonl", ".json", ".parquet", ".csv")
ACCEPTED = (
    "accepted columns (any case): question | problem | prompt with answer | gold | target | final_answer, or with a solution "
    "that ends in \\boxed{}, and if there are any hint, solution | cot | rationale, id; or verl's prompt (chat list) and "
    "reward_model.ground_truth; or question, choices, answer (index or letter); or problem_text, answer_number, unit; "
    "or prompt, entry_point, test, canonical_solution; "
    "or question, tests ({type: assert, code} or {type: stdio, cases}), solution"
)


def load(name: str, split: str = "train", limit: int | None = None, seed: int = 0) -> list[Problem]:
    """Problems of a data set, hints included.

    `name` is "countdown" (its train and test splits are disjoint), a local .jsonl, .json, .parquet or .csv file (`split`
    is ignored: a file is one split), or a Hugging Face hub id, with ":config" where the hub wants one
    ("openai/gsm8k:main"). `limit` keeps that many problems, picked by `seed`, in their order.

    A math row that has a solution and no hint gets the solution's first half as its hint (see `solution_hint`).
    Raises UserError with what to do: no such file, broken file, unknown columns, rows without question or answer.
    """
    if name == "countdown":
        if split not in ("train", "test"):
            raise UserError(f"countdown has the splits train and test, not {split!r}")
        pool = _countdown_pool()
        problems = list(pool[COUNTDOWN_TEST:] if split == "train" else pool[:COUNTDOWN_TEST])
    else:
        rows = read_file(Path(name)) if name.endswith(FILE_TYPES) or Path(name).exists() else _read_hub(name, split)
        problems = _problems(rows, name)
    if limit is not None and limit < len(problems):
        keep = sorted(np.random.default_rng(seed).permutation(len(problems))[:limit])
        problems = [problems[i] for i in keep]
    return problems


def read_file(path: Path) -> list[dict]:
    if not path.is_file():
        raise UserError(f"no such file: {path}" if not path.exists() else f"{path} is a folder: name a file in it")
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet  # comes with datasets; slow to import

            return pyarrow.parquet.read_table(path).to_pylist()
        if path.suffix == ".csv":
            csv.field_size_limit(2**30)
            with path.open(newline="", encoding="utf-8-sig") as file:
                return list(csv.DictReader(file))
        if path.suffix not in FILE_TYPES:
            raise UserError(f"{path}: cannot read this kind of file, give one of {', '.join(FILE_TYPES)}")
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json" and text.lstrip().startswith("["):
            return json.loads(text)
        rows = []
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise UserError(f"{path}, line {number}: not JSON ({error.msg})") from None
        return rows
    except UserError:
        raise
    except (ValueError, OSError, csv.Error) as error:  # pyarrow's errors are ValueErrors or OSErrors
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}") from None


def _read_hub(name: str, split: str) -> list[dict]:
    import datasets  # slow to import, and the built-in task does not need it

    path, _, config = name.partition(":")
    try:
        return datasets.load_dataset(path, config or None, split=split).to_list()
    except Exception as error:  # the hub client raises many kinds; all of them end the run with what it said
        said = " ".join(str(error).split("\n")[:2])
        raise UserError(
            f"cannot load {name!r} (split {split!r}) from the Hugging Face hub: {type(error).__name__}: {said} "
            f"(a local file must end in {', '.join(FILE_TYPES)} and exist)"
        ) from error


def _problems(rows: list[dict], name: str) -> list[Problem]:
    if not rows:
        raise UserError(f"{name}: no rows")
    problems, bad = [], []
    for index, row in enumerate(rows):
        row = {str(key).lower(): value for key, value in row.items() if value is not None} if isinstance(row, dict) else {}
        problem = _problem(row, f"{Path(name).stem}/{index}")
        if problem is None or not problem.question.strip() or not problem.answer.strip():
            bad.append(index)
        else:
            problems.append(problem)
    if not problems:
        columns = sorted(rows[0]) if isinstance(rows[0], dict) else type(rows[0]).__name__
        raise UserError(f"{name}: no problem can be read from the columns {columns}; {ACCEPTED}")
    if bad:
        message = f"{name}: {len(bad)} of {len(rows)} rows have no question or no answer (rows {str(bad[:10])[1:-1]})"
        if len(bad) > 0.01 * len(rows):
            raise UserError(f"{message}: mend or remove them; {ACCEPTED}")
        print(f"{message}: left out", file=sys.stderr)
    if len({p.id for p in problems}) < len(problems):  # ids pair the problems of two evaluations: make them unique
        problems = [replace(p, id=f"{p.id}#{i}") for i, p in enumerate(problems)]
    return problems


def _problem(row: dict, default_id: str) -> Problem | None:
    """One row of any schema listed in ACCEPTED (keys in lower case, no None values); None if it is of none."""

    def first(*names):
        return next((row[name] for name in names if name in row), None)

    id = first("id", "unique_id", "task_id", "problemid")
    id = default_id if id is None else str(id)
    hint, hinted_question = first("hint"), None
    if isinstance(hint, list):  # the Guide data set: a whole alternative chat
        hint = hinted_question = _last_user(hint).removeprefix("Problem: ")
    meta = {"hinted_question": hinted_question} if hinted_question else {}
    solution = _text(first("solution", "cot", "rationale")) or None

    if {"question", "answer", "domain", "meta"} <= row.keys() and isinstance(row["meta"], dict):  # written by --make-hints
        return Problem(id, row["question"], row["answer"], row["domain"], hint, row.get("solution"), row["meta"])
    if "entry_point" in row and "test" in row:  # HumanEval, MBPP
        entry = row["entry_point"].strip()
        code = row["test"].replace("def check(", "def run_tests(") + f"\nrun_tests({entry})\n"  # a program may define `check`
        # Helpers in the prompt are the tests' own: a program must not be able to replace what it is judged with.
        tests = {"type": "assert", "code": code, "setup": row["prompt"], "entry_point": entry}
        question = "Complete this Python program. Answer with the whole program in one fenced block.\n\n" + row["prompt"]
        answer = _reference_program(row["prompt"], row["canonical_solution"]) if "canonical_solution" in row else ""
        return Problem(id, question, answer, "code", hint, answer, {**meta, "tests": tests})
    if isinstance(row.get("tests"), dict) and row["tests"].get("type") in ("assert", "stdio"):  # a program and its tests
        answer = _text(first("answer", "canonical_solution", "solution"))
        question = _text(first("question", "prompt", "problem"))
        return Problem(id, question, answer, "code", hint, answer, {**meta, "tests": row["tests"]})
    choices = first("choices", "options")
    if choices is not None and "question" in row:  # MMLU, MMLU-Pro
        if not isinstance(choices, list):
            return None
        letters = "ABCDEFGHIJ"[: len(choices)]
        answer = _text(row.get("answer"))
        answer = letters[int(answer) : int(answer) + 1] if answer.isdigit() else answer
        if answer not in letters:
            return None
        options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, choices))
        return Problem(id, f"{row['question']}\n{options}", answer, "choice", hint, solution, meta)
    if "problem_text" in row and "answer_number" in row:  # SciBench
        unit = _text(row.get("unit")).strip()
        question = row["problem_text"] + (f" Answer in {unit}." if unit else "")
        return Problem(id, question, _text(row["answer_number"]), "math", hint, solution, {"rel_tol": 0.05, "unit": unit})
    if "reward_model" in row:  # verl
        gold = row["reward_model"].get("ground_truth")
        if isinstance(gold, dict):
            question, target = gold.get("question"), gold.get("target")
            solution = gold.get("solution") or solution
        else:
            question, target = None, gold
        question = question or _last_user(row.get("prompt")).removeprefix("Problem: ")
        # `target` is a normalised copy of the box, and the normalisation damages some golds: the box itself wins.
        answer = (last_box(solution) if isinstance(gold, dict) and solution else None) or _text(target)
    else:
        question = first("question", "problem", "prompt")
        answer = first("answer", "gold", "target", "final_answer")
        if question is None or (answer is None and solution is None) or isinstance(answer, dict):
            return None
        question, answer = _last_user(question) if isinstance(question, list) else question, _text(answer)
        if "\n#### " in answer:  # GSM8K
            solution, _, answer = answer.rpartition("\n#### ")
            solution, answer = re.sub(r"<<.*?>>", "", solution), answer.replace(",", "")
        answer = last_box(answer) or answer or last_box(solution or "") or ""
    if len(answer) > 300:  # a text, whose answer is somewhere inside: no guess
        return None
    if row.get("error"):  # OlympiadBench: the absolute tolerance of a numeric answer
        meta = {**meta, "abs_tol": _text(row["error"])}
    if not hint and solution:
        hint = solution_hint(str(question), solution, answer)
    domain = row.get("domain") if row.get("domain") in ("math", "choice", "code") else "math"
    return Problem(id, str(question), answer, domain, hint or None, solution, meta)


def _reference_program(prompt: str, body: str) -> str:
    """Prompt and body as one program; MBPP indents its bodies otherwise than its prompts' docstrings."""
    with suppress(SyntaxError):
        compile(prompt + body, "program", "exec")
        return prompt + body
    indent = re.search(r"^([ \t]+)\S", body, re.MULTILINE)[1]
    head, signature, docstring = prompt.rpartition("\ndef ") if "\ndef " in prompt else ("", "", prompt)
    first, *lines = docstring.split("\n")
    return head + signature + "\n".join([first, *(indent + line.strip() if line.strip() else line for line in lines)]) + body


def _text(value) -> str:
    """A column's value as text: lists joined, 27.0 as 27."""
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(v) for v in value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def _last_user(chat) -> str:
    """The last user message of a chat list; text stands for itself."""
    if isinstance(chat, str):
        return chat
    return next((m["content"] for m in reversed(chat or []) if isinstance(m, dict) and m.get("role") == "user"), "")


# ---- boxes and hints -------------------------------------------------------------------------------------------------

def last_box(text: str) -> str | None:
    r"""Content of the last closed \boxed{...} (or `\boxed 7`) in the last 200 kB; None without one. Boxes in it are opened.

    >>> last_box(r"so \boxed{\frac{1}{2}} or rather \boxed{ {3}, \boxed{4} }.")
    '{3}, 4'
    """
    text = text[-200_000:]
    boxes, open_braces = [], []  # (macro, argument, its end, macro's end) of closed boxes; (macro, argument) of open ones
    for match in re.finditer(r"\\(?:boxed|fbox)\s*(?:(\{)|([^\s$;{}\\]+))|\\.|[{}]", text, re.DOTALL):
        brace, bare = match[1] or match[0], match[2]
        if bare:
            end = match.end() - (len(bare) - len(bare.rstrip(".,:")))  # a full stop, not a decimal point
            boxes.append((match.start(), match.start(2), end, end))
        elif brace == "{":
            open_braces.append((match.start(), match.end()) if match[1] else None)
        elif brace == "}" and open_braces:
            box = open_braces.pop()
            if box and match.start() - box[1] <= 2_000:
                boxes.append((*box, match.start(), match.end()))
    if not boxes:
        return None
    _, start, end, _ = boxes.pop()
    inside = [b for b in boxes if b[0] >= start]
    cuts = sorted([(b[0], b[1]) for b in inside] + [(b[2], b[3]) for b in inside])
    return "".join(text[a:b] for a, b in zip([start, *(c[1] for c in cuts)], [*(c[0] for c in cuts), end])).strip()


def solution_hint(question: str, solution: str, answer: str) -> str | None:
    r"""The first half of a reference solution's sentences, as guidance: never a box, nor the answer unless the question has it.

    >>> solution_hint("What is 2+3?", r"Count on from 2. Three steps lead to 5. So \boxed{5}.", "5")
    'Count on from 2.'
    """
    solution = re.sub(r"\[asy\].*?(\[/asy\]|$)", "", solution, flags=re.DOTALL)
    sentences, piece = [], ""
    # A sentence ends in a full stop, a paragraph or a displayed formula.
    for part in re.split(r"(?<=[.!?])(?=\s)|(?<=[.!?][$)])(?=\s)|\n\n+|(?<=\\\])|(?<=\$\$)", solution):
        piece += part
        # A full stop inside a formula ends no sentence.
        if piece.count("$") % 2 == 0 and piece.count(r"\[") == piece.count(r"\]") and piece.strip():
            sentences.append(" ".join(piece.split()))
            piece = ""
    if piece.strip():
        sentences.append(" ".join(piece.split()))
    before_box = next((i for i, s in enumerate(sentences) if "boxed" in s), len(sentences))
    kept = []
    for sentence in sentences[: min(len(sentences) // 2, before_box)]:
        if holds_answer(" ".join([*kept, sentence]), answer) and not holds_answer(question, answer):
            break
        kept.append(sentence)
    return " ".join(kept) or None


def holds_answer(text: str, answer: str) -> bool:
    """Whether `answer` stands in `text` as a token of its own (white space and the sizes of brackets do not count)."""

    def plain(s):
        s = re.sub(r"\\[,!;: ]|\\left(?!\w)|\\right(?!\w)|(?<=\\)[dt](?=frac)|(?<=\d),(?=\d{3}(?!\d))", "", s)
        s = s.replace("$", "\n")  # a border: in `is $-2$` nothing stands before the sign
        return re.sub(r"(\\[A-Za-z]+)", r"\1 ", s)  # the name of a command is no part of the number behind it

    pieces = re.findall(r"\\[A-Za-z]+|\S", plain(answer))
    left = r"(?<![\w.])" if answer[:1].isalnum() else ""
    if answer.startswith("-"):  # a sign, not the minus between two terms
        left = r"(?<![\w)\]}])(?<![\w)\]}] )"
    right = r"(?!\w|\.\d)" if answer[-1:].isalnum() else ""
    return bool(pieces) and re.search(left + r"\s*".join(map(re.escape, pieces)) + right, plain(text)) is not None


# ---- prompts ---------------------------------------------------------------------------------------------------------

TEMPLATES = ("countdown", "plain", "qwen-math", "guide", "chat")
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
INSTRUCTIONS = {
    "math": BOXED,
    "choice": "Please reason step by step, and put the letter of your answer within \\boxed{}.",
}


def prompt_text(problem: Problem, template: str, tokenizer=None, hinted: bool = False) -> str:
    """The prompt as text, plain or with the problem's hint.

    countdown, plain: the question and a line break. qwen-math: the ChatML text of the NSR paper. guide: the Guide paper's
    messages, chat: question and instruction as one user message, both through the tokenizer's own chat template (guide
    falls back to ChatML where it has none). A hint follows the question, unless the data set brings a whole hinted
    question. Raises UserError for an unknown template and for `chat` without a chat template.
    """
    question = problem.question
    if hinted:
        assert problem.hint, f"{problem.id} has no hint"
        space = " " if template == "countdown" else "\n\n"
        question = problem.meta.get("hinted_question") or f"{question}{space}Hint: {problem.hint}"
    if template in ("countdown", "plain"):
        return f"{question}\n"
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if template == "qwen-math":
        chat, has_template = [("system", "You are a helpful assistant."), ("user", f"{question}\n{BOXED}")], False
    elif template == "guide":
        chat = [("system", BOXED), ("user", f"Problem: {question}")]
    elif template == "chat":
        if not has_template:
            raise UserError("this tokenizer has no chat template: use --template plain, qwen-math or guide")
        chat = [("user", f"{question}\n{INSTRUCTIONS.get(problem.domain, '')}".strip())]
    else:
        raise UserError(f"unknown template {template!r}: use one of {', '.join(TEMPLATES)}")
    if not has_template:
        return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in chat) + "<|im_start|>assistant\n"
    messages = [{"role": role, "content": text} for role, text in chat]
    try:
        return tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # Qwen3 answers without thinking, as in the NSR paper
            date_string="26 Jul 2024",  # Llama 3 writes the date into the prompt: not today's, or a resumed run sees another
        )
    except jinja2.TemplateError as error:  # some refuse a system message
        raise UserError(f"--template {template}: this tokenizer's chat template refuses it ({error}); use another") from error


def pick_template(template: str, name: str) -> str:
    """`auto` resolved: countdown for the built-in task, else chat."""
    return template if template != "auto" else "countdown" if name == "countdown" else "chat"


def render(tokenizer, problem: Problem, template: str, hinted: bool = False) -> list[int]:
    """`prompt_text` as token ids. The tokenizer's own BOS is added where the text does not come from its chat template."""
    text = prompt_text(problem, template, tokenizer, hinted)
    own = template in ("guide", "chat") and tokenizer.chat_template is not None
    return list(tokenizer(text, add_special_tokens=not own, verbose=False).input_ids)


def encode(problems, tokenizer, template: str, max_tokens: int):
    """Token ids of all prompts: (problems, prompts, hinted prompts or None each, counts).

    Problems whose plain prompt is longer than `max_tokens` are left out; a hint that makes its prompt too long is left
    out alone. `counts` = {"too_long": .., "hints_too_long": ..}. Raises UserError if nothing is left, or if the tokenizer
    does not give the prompts back when it decodes them (a custom tokenizer loaded as the wrong class does that silently).
    """
    kept, prompts, hinted_prompts = [], [], []
    counts = {"too_long": 0, "hints_too_long": 0}
    for problem in problems:
        ids = render(tokenizer, problem, template)
        if len(ids) > max_tokens:
            counts["too_long"] += 1
            continue
        hinted_ids = render(tokenizer, problem, template, hinted=True) if problem.hint else None
        if hinted_ids is not None and len(hinted_ids) > max_tokens:
            counts["hints_too_long"] += 1
            hinted_ids = None
        kept.append(problem)
        prompts.append(ids)
        hinted_prompts.append(hinted_ids)
    if not kept:
        raise UserError(f"every one of the {len(problems)} prompts is longer than {max_tokens} tokens: raise --max-prompt")

    def squeeze(text):
        return re.sub(r"\s", "", unicodedata.normalize("NFC", text))

    for problem, ids in list(zip(kept, prompts))[:100]:
        text = prompt_text(problem, template, tokenizer)
        if squeeze(text) not in squeeze(tokenizer.decode(ids)):
            raise UserError(
                f"the tokenizer does not give the prompt of {problem.id} back: {tokenizer.decode(ids)[:80]!r} for {text[:80]!r}"
            )
    return kept, prompts, hinted_prompts, counts


def draw(n_problems: int, count: int, step: int, seed: int, stream: int = 0) -> list[int]:
    """Indices of the problems of one step: a pure function of its arguments, so a resumed run goes on as it would have.

    Positions step * count ... of an endless sequence of reshuffled epochs. `stream` 1, 2 .. are refills of the same step,
    from sequences of their own, without what the earlier ones drew.
    """

    @cache
    def epoch(e):
        return np.random.default_rng([seed, stream, e]).permutation(n_problems)

    earlier = {i for s in range(stream) for i in draw(n_problems, count, step, seed, s)}
    positions = range(step * count, (step + 1) * count)
    drawn = [int(epoch(p // n_problems)[p % n_problems]) for p in positions]
    return [i for i in drawn if i not in earlier]


# ---- making hints ----------------------------------------------------------------------------------------------------

GUIDANCE = """Here is a problem and its reference solution. Write two or three sentences of guidance for a student: which idea
to use and how to begin. Do not give the final answer, do not carry out the last steps, and do not write \\boxed.

Problem: {question}

Reference solution: {solution}

Guidance:"""


def leaks(hint: str, problem: Problem) -> bool:
    """Whether a hint has a box, or the answer unless the question has it too."""
    return "boxed" in hint or (holds_answer(hint, problem.answer) and not holds_answer(problem.question, problem.answer))


def model_hints(model: str, device: str, tries: int, max_tokens: int):
    """hints(problems) -> guidance of a language model for each, None where each of its `tries` leaks or is empty."""
    from evaluate import Sampler, load_tokenizer  # evaluate -> verify -> data: not at the top

    tokenizer, sampler = load_tokenizer(model), Sampler(model, device=device)

    def hints(problems: list[Problem]) -> list[str | None]:
        found = {}
        for turn in range(tries):
            left = {}
            for problem in problems:
                text = GUIDANCE.format(question=problem.question, solution=problem.solution or "(none)")
                own = tokenizer.chat_template is not None
                if own:
                    chat = [{"role": "user", "content": text}]
                    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
                    text = tokenizer.apply_chat_template(chat, **options)
                ids = list(tokenizer(text, add_special_tokens=not own).input_ids)
                if problem.id not in found and len(ids) + max_tokens <= sampler.positions:
                    left[problem.id] = (problem, ids)
            if not left:
                break
            # The seed is of the first problem and the turn: a run that was killed writes what it would have written.
            seed = (zlib.crc32(problems[0].id.encode()), turn)
            samples = sampler.generate([ids for _, ids in left.values()], 1, 0.7, max_tokens, seed, top_p=0.95)
            for (problem, _), (sample,) in zip(left.values(), samples):
                text = tokenizer.decode(sample.ids, skip_special_tokens=True).rpartition("</think>")[2]
                hint = " ".join(text.split())
                if hint and sample.finished and not leaks(hint, problem):
                    found[problem.id] = hint
        return [found.get(problem.id) for problem in problems]

    return hints


def make_hints(problems: list[Problem], out: Path, hints, batch: int) -> None:
    """Writes every problem with a hint to `out`, a JSON object a line, and says how many have none.

    `hints(problems)` gives one or None for each; None falls back to the first half of the solution. An existing `out` is
    continued: whole lines stay, a half-written last one is made again. Raises UserError if it is of other problems.
    """
    done = []
    if out.exists():
        text = out.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        try:
            done = [json.loads(line) for line in whole.splitlines()]
            same = [row["id"] for row in done] == [p.id for p in problems[: len(done)]]
        except (ValueError, TypeError, KeyError):
            same = False
        if not same:
            raise UserError(f"{out} exists and holds other rows: give another --out, or remove it")
        os.truncate(out, len(whole))
    counts = {"hint": sum(bool(row["hint"]) for row in done), "fallback": 0}
    with out.open("a", encoding="utf-8") as file:
        for start in tqdm(range(len(done), len(problems), batch), desc="hints", disable=None):
            part = problems[start : start + batch]
            for problem, hint in zip(part, hints(part)):
                if hint is None and problem.solution and problem.domain != "code":
                    hint = solution_hint(problem.question, problem.solution, problem.answer)
                    counts["fallback"] += 1
                assert not (hint and problem.domain != "countdown" and leaks(hint, problem)), problem.id
                row = asdict(problem)  # with the hint that it came with, where none is made
                if hint:
                    row["hint"] = hint
                    row["meta"].pop("hinted_question", None)
                counts["hint"] += bool(row["hint"])
                file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
    none = len(problems) - counts["hint"]
    more = f", {len(done)} of them from an earlier run" if done else ""
    print(f"{out}: {len(problems)} problems{more}; {none} without a hint ({none / len(problems):.1%})"
          + (f"; {counts['fallback']} from the solution instead of the model" if hints is not no_hints else ""))


def no_hints(problems: list[Problem]) -> list[None]:
    return [None] * len(problems)


def main():
    parser = argparse.ArgumentParser(description="Print problems, prompts and hints as the trainer will see them; make hints.")
    parser.add_argument("--data", default="countdown", help="countdown, a hub id (openai/gsm8k:main), or a local file")
    parser.add_argument("--split", default="train")
    parser.add_argument("--show", type=int, default=3, help="how many problems")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--template", choices=("auto", *TEMPLATES), default="auto", help="as in the training scripts")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="whose tokenizer and chat template to use")
    parser.add_argument("--make-hints", choices=("solution", "model"), help="from the solution's first half, or by --model")
    parser.add_argument("--out", type=Path, help="where --make-hints writes; an unfinished file is continued")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=64, help="problems that the model reads at once")
    parser.add_argument("--tries", type=int, default=3, help="for a hint that does not give the answer away")
    parser.add_argument("--max-tokens", type=int, default=256, help="of a hint")
    args = parser.parse_args()
    problems = load(args.data, args.split)
    if args.make_hints:
        if args.out is None or args.out.suffix != ".jsonl" or not args.out.resolve().parent.is_dir():
            raise UserError("--make-hints needs --out FILE.jsonl in a folder that exists")
        by_model = args.make_hints == "model"
        hints = model_hints(args.model, args.device, args.tries, args.max_tokens) if by_model else no_hints
        return make_hints(problems, args.out, hints, args.batch if by_model else 1000)
    hints = sum(p.hint is not None for p in problems)
    print(f"{args.data}: {len(problems)} problems, {hints} with a hint")
    template = pick_template(args.template, args.data)
    from transformers import AutoTokenizer  # slow to import

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    for i in draw(len(problems), min(args.show, len(problems)), 0, args.seed):
        problem = problems[i]
        print(f"\n=== {problem.id} ({problem.domain})   answer: {problem.answer}")
        print(f"--- plain prompt\n{prompt_text(problem, template, tokenizer)}")
        if problem.hint:
            print(f"--- hinted prompt\n{prompt_text(problem, template, tokenizer, hinted=True)}")
        else:
            print("--- no hint")


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:  # OSError: no such --model
        sys.exit("error: " + " ".join(str(error).split("\n")[:2]))
