"""A tool: what happened in a training run, step by step and token by token.

    python -m machinery.look runs/RUN              # writes runs/RUN/look.html: one file, for any browser
    python -m machinery.look runs/A runs/B         # two runs side by side: runs/A/look-B.html
    python -m machinery.look runs/RUN --step 40    # one step as text
    python -m machinery.look runs                  # a table of the runs in a folder

It reads what the run has written so far, also while it trains, and needs no model.
"""

import argparse
import sys
from pathlib import Path

from machinery.command import UserError, run_command
from machinery.compare import table
from machinery.logged import (
    changed_args,
    group_shown,
    is_run,
    pass_at_1,
    read_args,
    read_lines,
    read_results,
    read_steps,
    visible,
)
from machinery.page import write_page

LOW_RATIO = 0.5  # as guide/low_ratio: where the hint decided


# ---- one step as text --------------------------------------------------------------------------------------

def step_text(folder: Path, step: int, colours: bool) -> str:
    """Raises UserError if nothing is logged of that step."""
    steps = read_steps(folder)
    metrics = {row["step"]: row for row in read_lines(folder / "metrics.jsonl")}.get(step, {})
    if step not in steps:
        have = f"{min(steps)} to {max(steps)}" if steps else "none"
        raise UserError(f"--step {step}: {folder}/rollouts.jsonl has no such step; there are: {have}")
    said = [f"step {step} of {folder}, with the policy of {step - 1} steps"]
    for key in ("rollout/reward", "guide/failed", "guide/ratio", "guide/gamma", "train/grad_norm"):
        if key in metrics:
            said[0] += f"; {key} {metrics[key]:.4g}"
    for number, group in enumerate(steps[step], 1):
        said += ["", *group_text(group_shown(group), number, colours)]
    said += ["", "ratios: the policy given the plain prompt, to the one that sampled; weight: of the "
             "token's gradient, beside the advantage"]
    return "\n".join(said)


def group_text(group: dict, number: int, colours: bool) -> list[str]:
    counts = []
    for name, guided in (("plain", False), ("guided", True)):
        rewards = [row["reward"] for row in group["rows"] if row["guided"] == guided]
        if rewards:
            counts.append(f"{name} {sum(reward > 0 for reward in rewards)} of {len(rewards)} right")
    said = [f"group {number}: {group['problem']}; {', '.join(counts)}; answer {group['answer']}",
            indented(group["prompt"], "  prompt | ")]
    if group["hinted"]:
        said.append(indented(group["hinted"][1].strip(), "  hint   | "))
    for row in group["rows"]:
        sign, advantage = "+" if row["reward"] > 0 else "-", row["advantage"]
        head = f"{sign} {row['verdict']}{', guided' if row['guided'] else ''}"
        if advantage is not None:
            head += f", advantage {advantage:+.3g}"
        if not row["finished"]:
            head += ", cut at --max-response"
        said.append(f"  {painted(head, 32 if sign == '+' else 31, colours)}")
        text = "".join(painted_tokens(row, colours)) + row["rest"]
        said.append(indented(text, "         | "))
        if row["left"]:
            said.append(f"           .. and {row['left']:,} characters")
        if low := low_ratios(row):
            said.append(f"           lowest of {len(low)} ratios below {LOW_RATIO}: {', '.join(low[:6])}")
    return said


def low_ratios(row: dict) -> list[str]:
    """The tokens that the policy would hardly have drawn without the hint, the least likely first."""
    low = []
    for token, ratio, weight in zip(row["tokens"], row.get("ratio", []), row.get("weight", [])):
        if ratio is not None and ratio < LOW_RATIO:
            weight = "-" if weight is None else f"{weight:.2g}"
            low.append((ratio, f"{token!r} {ratio:.2g} (weight {weight})"))
    return [said for _, said in sorted(low)]


def indented(text: str, first: str) -> str:
    """Its lines behind `first`, which stands once."""
    rest = " " * (len(first) - 2) + "| "
    return "\n".join((rest if i else first) + line for i, line in enumerate(text.rstrip("\n").split("\n")))


def painted(text: str, colour: int, colours: bool) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if colours else text


def painted_tokens(row: dict, colours: bool) -> list[str]:
    """Tokens that the policy would hardly have drawn without the hint are yellow."""
    ratios = row.get("ratio") or [None] * len(row["tokens"])
    found = []
    for token, ratio in zip(row["tokens"], ratios):
        low = ratio is not None and ratio < LOW_RATIO
        found.append(painted(token, 33, colours) if low and token.strip() else token)
    return found


# ---- all runs of a folder ----------------------------------------------------------------------------------

def runs_of(folder: Path) -> list[Path]:
    found = {path.parent for pattern in ("*/args.json", "*/*/args.json") for path in folder.glob(pattern)}
    return sorted(path for path in found if is_run(path))


def runs_table(folder: Path) -> str:
    """Raises UserError if there is no run."""
    runs = runs_of(folder)
    if not runs:
        raise UserError(f"{folder} is no training run, and there is none in it (no args.json, metrics.jsonl)")
    head = ["run", "script", "steps", "reward, last 10 steps", "pass@1 base -> trained", "changed args"]
    rows = []
    for run in runs:
        name = visible(str(run.relative_to(folder)))
        try:
            rows.append([name, *run_cells(run)])
        except UserError as error:
            rows.append([name, "", "", "", "", str(error)])
    return table(head, rows)


def run_cells(run: Path) -> list[str]:
    args, metrics, results = read_args(run), read_lines(run / "metrics.jsonl"), read_results(run)
    rewards = [row["rollout/reward"] for row in metrics[-10:] if "rollout/reward" in row]
    reward = f"{sum(rewards) / len(rewards):.3f}" if rewards else "-"
    rates = [f"{pass_at_1(results[name]):.3f}" if name in results else "-" for name in ("base", "trained")]
    done = metrics[-1]["step"] if metrics else 0
    return [visible(str(args["script"])), f"{done} of {args['steps']}", reward, " -> ".join(rates),
            changed_args(args)]


# ---- the command line --------------------------------------------------------------------------------------

def main() -> None:
    parser = argparse.ArgumentParser("python -m machinery.look", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="a run, two runs, or a folder of runs")
    parser.add_argument("--step", type=int, help="prints this step as text")
    args = parser.parse_args()
    if len(args.runs) > 2:
        raise UserError("at most two runs side by side; a folder of runs gives a table of all")
    if len(args.runs) == 1 and not is_run(args.runs[0]) and args.step is None:
        print(runs_table(args.runs[0]))
        return
    for run in args.runs:
        if not is_run(run):
            raise UserError(f"{run} is no training run: it has no args.json and metrics.jsonl")
    if args.step is None:
        print(write_page(args.runs))
        return
    for run in args.runs:
        print(step_text(run, args.step, sys.stdout.isatty()))


if __name__ == "__main__":
    run_command(main)
