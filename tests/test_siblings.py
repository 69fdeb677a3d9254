"""`diff grpo.py guide_grpo.py` is the paper: what two scripts share is the same text, and the difference stays small."""

import ast
import subprocess
from pathlib import Path

import pytest

SCRIPTS = ["grpo.py", "guide_grpo.py", "nsr.py", "ppo.py", "guide_ppo.py"]
ALGORITHM = {"Args", "policy_loss", "main"}  # what a script exists to change; what only one has is its own too
DIFFS = [("grpo.py", "guide_grpo.py"), ("grpo.py", "nsr.py"), ("ppo.py", "guide_ppo.py")]
MOST_CHANGED_LINES = 80


def definitions(path: str) -> dict[str, str]:
    source = Path(path).read_text()
    nodes = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    return {n.name: "".join(source.splitlines(keepends=True)[n.lineno - 1 : n.end_lineno]) for n in nodes}


def banners(path: str) -> list[str]:
    return [line.split()[2] for line in Path(path).read_text().splitlines() if line.startswith("# ---- ")]


def test_definitions_of_the_same_name_are_the_same_text():
    texts: dict[str, dict[str, str]] = {}
    for script in SCRIPTS:
        for name, text in definitions(script).items():
            texts.setdefault(name, {})[script] = text
    drifted = [name for name, of in texts.items() if name not in ALGORITHM and len(set(of.values())) > 1]
    assert not drifted, f"these differ between {SCRIPTS}: carry the change over to every sibling"


@pytest.mark.parametrize("a, b", DIFFS)
def test_diff_is_small(a, b, capsys):
    lines = subprocess.run(["diff", a, b], capture_output=True, text=True).stdout.splitlines()  # what a reader would type
    changed = sum(line.startswith(("<", ">")) for line in lines)
    with capsys.disabled():
        print(f"\n  diff {a} {b}: {changed} changed lines")
    assert changed <= MOST_CHANGED_LINES


def test_sections_come_in_the_same_order():
    order = ["args", "policy", "critic", "rollout", "guidance", "advantage", "loss", "main"]
    for script in SCRIPTS:
        own = {"guidance": script.startswith("guide"), "critic": "ppo" in script}
        assert banners(script) == [name for name in order if own.get(name, True)]


def test_line_counts_are_reported(capsys):
    counts = {path: len(Path(path).read_text().splitlines()) for path in [*SCRIPTS, "data.py", "verify.py", "evaluate.py"]}
    with capsys.disabled():
        print("\n  lines:", ", ".join(f"{path} {n}" for path, n in counts.items()))
    assert all(counts[script] <= 610 for script in SCRIPTS), "a file that nobody reads in one go: take something out"


def test_no_script_imports_another():
    for script in SCRIPTS:
        tree = ast.parse(Path(script).read_text())
        imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        imported |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
        assert not imported & {Path(s).stem for s in SCRIPTS}


def test_guidance_is_the_same_text_in_both_guide_scripts():
    hunks = []
    for script in ("guide_grpo.py", "guide_ppo.py"):
        source = Path(script).read_text()
        start = source.index("# guidance: failed prompts are rolled out again")
        hunk = source[start : source.index("guided += hinted", start)]
        hunks.append([line.strip() for line in hunk.splitlines()])
        assert definitions(script)["policy_loss"] == definitions("guide_grpo.py")["policy_loss"]
    assert hunks[0] == hunks[1]
