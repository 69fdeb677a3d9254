"""The files of rows that verify.py judges: labelled cases, and completions that someone has sampled."""

from dataclasses import dataclass
from pathlib import Path

from data import Problem, UserError, read_file


@dataclass(frozen=True)
class Case:
    completion: str
    problem: Problem
    correct: bool  # what a verifier should say
    kind: str


def read_rows(path: str) -> list:
    rows = read_file(Path(path))
    if not rows:
        raise UserError(f"{path} has no rows")
    return rows


def text(value) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def read_cases(path: str) -> list[Case]:
    """Rows have prediction, completion or pieces ([[text, repeat]]); gold, or tests of a program, or numbers
    and target of a countdown; correct; and kind, if there are kinds. Raises UserError for another row."""
    cases = []
    for number, row in enumerate(read_rows(path)):
        try:
            cases.append(read_case(row, str(number)))
        except (KeyError, TypeError, ValueError, AttributeError):
            needs = "prediction, completion or pieces; gold or tests; correct (true or false); text as kind"
            raise UserError(f"{path}, row {number}: needs {needs}") from None
    return cases


def read_case(row: dict, id: str) -> Case:
    """Raises KeyError, TypeError, ValueError or AttributeError if something is missing or of another type."""
    if row.get("pieces") is not None:
        completion = "".join(piece * times for piece, times in row["pieces"])
    else:
        completion = text(row["prediction"] if row.get("prediction") is not None else row["completion"])
    if type(row["correct"]) is not bool:
        raise TypeError
    domain = text(row.get("domain") or ("code" if row.get("tests") is not None else "math"))
    gold, meta = "", {}
    if domain == "code":
        meta = {"tests": row["tests"]}
    elif domain == "countdown":
        meta = {"numbers": list(map(int, row["numbers"])), "target": int(row["target"])}
    else:
        gold = text(row["gold"])
    kind = "all" if row.get("kind") is None else text(row["kind"])
    return Case(completion, Problem(id, "", gold, domain, meta=meta), row["correct"], kind)


def read_completions(path: str, problems: list[Problem]) -> list[tuple[str, str, Problem]]:
    """("completions", text, problem) of each row: the problem by its id, its index, or the row's number.

    A run's rollouts.jsonl has the id in the column `problem`, in which other files have the question.
    """
    rows, by_id = [], {problem.id: problem for problem in problems}
    by_name = {problem.question: problem for problem in problems} | by_id
    for number, row in enumerate(read_rows(path)):
        try:
            index = number if row.get("index") is None else row["index"]
            if type(index) is not int or index < 0:  # -1, 0.9 and true would be some other problem
                raise TypeError
            if row.get("id") is not None:
                problem = by_id[str(row["id"])]
            elif row.get("index") is None and row.get("problem") not in (None, ""):
                problem = by_name[row["problem"]]
            else:
                problem = problems[index]
            rows.append(("completions", text(row["completion"]), problem))
        except (LookupError, TypeError, AttributeError):
            needs = "a completion, and an id or index of a problem of --data"
            raise UserError(f"{path}, row {number}: needs {needs}") from None
    return rows
