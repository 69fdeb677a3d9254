"""What a run has logged, as a person may look at it: its lines read, its texts made harmless and cut."""

import ast
import json
import math
import unicodedata
from pathlib import Path

from machinery.command import UserError
from machinery.compare import read_result
from machinery.names import names_of
from machinery.tasks import TASKS

CHARACTERS = 20_000  # of one text that are shown: the rest is in rollouts.jsonl
SAMPLES = 1000  # problems of a result file that have samples to be read
COLUMNS = ("engine_logp", "old_logp", "ratio", "weight", "advantages", "values")  # one number a token


# ---- reading -----------------------------------------------------------------------------------------------

def is_run(folder: Path) -> bool:
    """Other folders have an args.json too."""
    return (folder / "args.json").is_file() and (folder / "metrics.jsonl").is_file()


def read_args(folder: Path) -> dict:
    try:
        args = json.loads((folder / "args.json").read_text())
        return {"script": "", "model": "", "data": "", "steps": 0, **args}
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder}/args.json is damaged: {error}") from None


def read_lines(path: Path) -> list[dict]:
    """The rows of a .jsonl file, each with its step; half a line at its end is still being written."""
    rows = []
    if not path.exists():
        return rows
    with open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                break
            try:
                rows.append(json.loads(line))
                rows[-1]["step"] + 0
            except (ValueError, TypeError, KeyError):
                raise UserError(f"{path}, line {number}, is damaged: remove it") from None
    return rows


def read_steps(folder: Path) -> dict[int, list[list[dict]]]:
    """{step: its groups of rows} of rollouts.jsonl; earlier versions had no numbers of groups."""
    steps: dict[int, list[list[dict]]] = {}
    last = None
    for row in read_lines(folder / "rollouts.jsonl"):
        key = row["step"], row.get("group"), row.get("problem")
        groups = steps.setdefault(row["step"], [])
        if key != last or not groups:
            groups.append([])
        groups[-1].append(row)
        last = key
    return steps


def read_results(folder: Path) -> dict[str, dict]:
    """The evaluations that are there: base, trained."""
    paths = {name: folder / f"eval_{name}.json" for name in ("base", "trained")}
    return {name: read_result(path) for name, path in paths.items() if path.exists()}


def pass_at_1(result: dict) -> float:
    return sum(row["c"] / row["n"] for row in result["problems"]) / len(result["problems"])


def defaults(script: str) -> dict:
    """The defaults of a script's options, read from its source: importing it would take seconds."""
    found, home = {}, Path(__file__).parent
    for path in (home / "run.py", home.parent / f"{script}.py"):
        if not path.is_file():
            return {}
        for part in ast.parse(path.read_text()).body:
            if isinstance(part, ast.ClassDef) and part.name.endswith("Args"):
                for line in part.body:
                    if isinstance(line, ast.AnnAssign) and line.value:
                        found[line.target.id] = ast.literal_eval(line.value)
    return found


def changed_args(args: dict) -> str:
    """The options of a run that are not the defaults, as one would type them."""
    usual = defaults(args["script"])
    task = next((TASKS[name] for name in names_of(str(args["data"])) if name in TASKS), TASKS["countdown"])
    derived = {"model": task.model, "max_response": task.max_response}
    said = []
    for key, value in args.items():
        same = value == usual.get(key) or value == derived.get(key)
        if key in usual and not same and key not in ("run_dir", "resume"):
            said.append(f"--{key.replace('_', '-')} {value}")
    return visible(" ".join(said))


# ---- texts -------------------------------------------------------------------------------------------------

def visible(text: str) -> str:
    """A model's text, made harmless: what would move the cursor, turn the line around or be no character is
    shown by its code.

    >>> visible("a\\x1b[2J\\u202eb\\ud800")
    'a\\\\x1b[2J\\\\u202eb\\\\ud800'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    harmless = unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return character if harmless or character in "\n\t\u200c\u200d" else ascii(character)[1:-1]


def cut(text: str, most: int = CHARACTERS) -> tuple[str, int]:
    """A visible text of at most `most` characters, and how many were left out."""
    text = str(text)
    return visible(text[:most]), max(0, len(text) - most)


def hint_part(prompt: str, sampled_from: str) -> list[str]:
    """A hinted prompt in three parts, of which the middle one is the hint: what the plain one has not.

    >>> hint_part("Use 3.\\n", "Use 3. Hint: 1+2.\\n")
    ['Use 3.', ' Hint: 1+2.', '\\n']
    """
    most, start = min(len(prompt), len(sampled_from)), 0
    while start < most and prompt[start] == sampled_from[start]:
        start += 1
    end = 0
    while end < most - start and prompt[-1 - end] == sampled_from[-1 - end]:
        end += 1
    return [sampled_from[:start], sampled_from[start : len(sampled_from) - end],
            sampled_from[len(sampled_from) - end :]]


def row_shown(row: dict, most: int = CHARACTERS) -> dict:
    """A row of rollouts.jsonl for the page and the terminal: its text, `most` characters and tokens of it."""
    completion, left = cut(row.get("response", row.get("completion", "")), most)
    shown = {"guided": bool(row.get("guided")), "verdict": visible(str(row.get("verdict", "?"))),
             "reward": row.get("reward", 0.0), "advantage": row.get("advantage"), "left": left,
             "finished": row.get("finished", True)}
    tokens, end = [], 0
    for token in map(visible, row.get("tokens", [])[:most]):
        if end + len(token) > len(completion):
            break
        tokens.append(token)
        end += len(token)
    shown["tokens"], shown["rest"] = tokens, completion[end:]  # which has no numbers
    for name in COLUMNS:
        if name in row:
            shown[name] = [finite(x) for x in row[name][: len(tokens)]]
    return shown


def samples_shown(problem, samples: list, verdicts: list) -> dict[str, str]:
    """The question, and the first right and the first wrong one of its samples, for a result file."""
    found = {"question": shortened(problem.question)}
    for sample, verdict in zip(samples, verdicts):
        found.setdefault("right" if verdict.correct else "wrong", shortened(sample.text))
    return found


def shortened(text: str, most: int = 1000) -> str:
    """Its beginning and its end, where the answer is."""
    return text if len(text) <= most else f"{text[: most // 2]} [..] {text[-most // 2 :]}"


def group_shown(group: list[dict], most: int = CHARACTERS) -> dict:
    first = group[0]
    prompt = cut(first.get("prompt", ""), most)[0]
    shown = {"problem": visible(str(first.get("problem", ""))), "prompt": prompt, "hinted": None,
             "answer": cut(first.get("answer", ""), most)[0], "rows": [row_shown(row, most) for row in group]}
    for row in group:
        hinted = cut(row.get("sampled_from", ""), most)[0]
        if row.get("guided") and hinted != prompt:
            shown["hinted"] = hint_part(prompt, hinted)
            break
    return shown


def finite(x):
    """JSON has no word for what is no finite number."""
    return x if isinstance(x, int | float) and math.isfinite(x) else None
