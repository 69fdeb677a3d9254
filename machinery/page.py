"""look.html: a run, or two side by side, as one file that a browser shows without a server or a network.

machinery/look.html is its template. The data of a step stand as JSON in a script element of their own, which
is read when the step is chosen: so hundreds of steps open at once.
"""

import json
import os
import re
from pathlib import Path

import jinja2
from markupsafe import Markup

from machinery.command import UserError, check_writable
from machinery.compare import STATES, check_pair, state
from machinery.curves import series
from machinery.logged import (
    CHARACTERS,
    changed_args,
    finite,
    group_shown,
    read_args,
    read_lines,
    read_results,
    read_steps,
    visible,
)

MOST_BYTES = 48_000_000  # of all steps of a page: where there are more, their texts are cut shorter


def write_page(runs: list[Path]) -> Path:
    """look.html in the folder of the first run, with the name of a second one. Whole or not at all."""
    others = [re.sub(r"[^\w.+-]", "_", run.resolve().name) for run in runs[1:]]
    out = runs[0] / f"{'-'.join(['look', *others])}.html"
    check_writable("the page", out)
    part = Path(f"{out}.part")
    part.write_text(page(runs), encoding="utf-8")
    os.replace(part, out)
    return out


def page(runs: list[Path]) -> str:
    """The HTML of one run, or of two side by side."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                     undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found = [run_shown(run, MOST_BYTES / len(runs)) for run in runs]
    return environment.get_template("look.html").render(runs=found, states=STATES, in_script=in_script)


def run_shown(run: Path, most_bytes: float) -> dict:
    args, metrics, steps = read_args(run), read_lines(run / "metrics.jsonl"), read_steps(run)
    room = most_bytes / max(1, len(steps))
    try:
        results, problem = read_results(run), ""
        moved = movement_shown(results, steps)
    except UserError as error:  # of another version, say: the steps are there all the same
        results, moved, problem = {}, None, visible(str(error))
    of_step = {row["step"]: {key: finite(value) for key, value in row.items()} for row in metrics}
    return {
        "name": visible(run.resolve().name), "script": visible(str(args["script"])),
        "changed": changed_args(args), "moved": moved, "problem": problem,
        "data": {"curves": series(metrics, results), "metrics": of_step, "steps": list(steps),
                 "moved": moved},
        "steps": {step: step_json(groups, room) for step, groups in steps.items()},
    }


def movement_shown(results: dict[str, dict], steps: dict) -> dict[str, list] | None:
    """{"never always": problems, ..} by STATES of the base and of the trained model; None without the two."""
    if len(results) < 2:
        return None
    check_pair(results["base"], results["trained"])
    logged: dict[str, list[int]] = {}
    for step, groups in steps.items():
        for group in groups:
            logged.setdefault(str(group[0].get("problem")), []).append(step)
    cells: dict[str, list] = {f"{before} {after}": [] for before in STATES for after in STATES}
    for i, (base, trained) in enumerate(zip(results["base"]["problems"], results["trained"]["problems"])):
        problem = {"id": visible(str(base["id"])), "steps": logged.get(str(base["id"]), [])}
        for name, row in (("base", base), ("trained", trained)):
            samples = results[name].get("samples", [])[i : i + 1]  # none in files of earlier versions
            texts = {key: visible(str(text)) for sample in samples for key, text in sample.items()}
            problem[name] = {"n": row["n"], "c": row["c"], **texts}
        cells[f"{state(base)} {state(trained)}"].append(problem)
    return cells


def step_json(groups: list[list[dict]], most_bytes: float) -> str:
    """The groups of a step as JSON, their texts cut until it fits."""
    text = ""
    for most in (CHARACTERS, 4000, 1000, 250, 60):
        text = json.dumps([group_shown(group, most) for group in groups], allow_nan=False)
        if len(text) <= most_bytes:
            break
    return text


def in_script(value) -> Markup:
    """JSON for a script element, with no `<` that could end it; a str is JSON already."""
    text = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
