"""`diff grpo.py guide_grpo.py` is the paper: what two scripts share is the same text, and all stays small."""

import ast
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # who experiments in one script need not carry it to the others

GROUPS = ["grpo.py", "guide_grpo.py", "nsr.py"]
CRITICS = ["ppo.py", "guide_ppo.py"]
SCRIPTS = GROUPS + CRITICS
# What a script exists to change; what only one has is its own too.
ALGORITHM = {"Args", "Row", "policy_loss", "main"}
DIFFS = [("grpo.py", "guide_grpo.py"), ("grpo.py", "nsr.py"), ("ppo.py", "guide_ppo.py")]
MOST_CHANGED_LINES = 80
MOST_LINES_OF_MAIN = {"grpo.py": 95, "nsr.py": 95, "guide_grpo.py": 125, "ppo.py": 125, "guide_ppo.py": 125}
MOST_LINES = {"grpo.py": 400, "guide_grpo.py": 450, "nsr.py": 400, "ppo.py": 500, "guide_ppo.py": 570,
              "data.py": 500, "evaluate.py": 450, "verify.py": 320, "machinery/answers.py": 340,
              "machinery/sandbox.py": 270}
MOST_LINES_OF_MACHINERY = 400
WIDTH = 110


def source_files() -> list[str]:
    return [str(path) for path in (*Path(".").glob("*.py"), *Path("machinery").glob("*.py"))]


def definitions(path: str) -> dict[str, str]:
    source = Path(path).read_text()
    nodes = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    return {n.name: "".join(source.splitlines(keepends=True)[n.lineno - 1 : n.end_lineno]) for n in nodes}


def imports(path: str) -> set[str]:
    """The modules that a file imports, machinery's as machinery/x.py, ours as x.py; inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(Path(path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {f"{name.replace('.', '/')}.py" for name in found} & set(source_files())


def banners(path: str) -> list[str]:
    return [line.split()[2] for line in Path(path).read_text().splitlines() if line.startswith("# ---- ")]


def test_definitions_of_the_same_name_are_the_same_text():
    texts: dict[str, dict[str, str]] = {}
    for script in SCRIPTS:
        for name, text in definitions(script).items():
            texts.setdefault(name, {})[script] = text
    drifted = [name for name, of in texts.items() if name not in ALGORITHM and len(set(of.values())) > 1]
    assert not drifted, f"these differ between {SCRIPTS}: carry the change over to every sibling"
    assert texts["Row"]["grpo.py"] == texts["Row"]["guide_grpo.py"]
    assert texts["Row"]["ppo.py"] == texts["Row"]["guide_ppo.py"]
    assert texts["policy_loss"]["grpo.py"] == texts["policy_loss"]["nsr.py"] == texts["policy_loss"]["ppo.py"]
    assert texts["policy_loss"]["guide_grpo.py"] == texts["policy_loss"]["guide_ppo.py"]


@pytest.mark.parametrize("a, b", DIFFS)
def test_diff_is_small(a, b, capsys):
    lines = subprocess.run(["diff", a, b], capture_output=True, text=True).stdout.splitlines()
    changed = sum(line.startswith(("<", ">")) for line in lines)  # what a reader would type and see
    with capsys.disabled():
        print(f"\n  diff {a} {b}: {changed} changed lines")
    assert changed <= MOST_CHANGED_LINES


def test_sections_come_in_the_same_order():
    order = ["args", "policy", "critic", "rollout", "guidance", "advantage", "loss", "main"]
    for script in SCRIPTS:
        own = {"guidance": script.startswith("guide"), "critic": "ppo" in script}
        assert banners(script) == [name for name in order if own.get(name, True)]


def test_every_script_ends_in_the_same_lines():
    sources = [Path(script).read_text() for script in SCRIPTS]
    ends = {source[source.index("    save_model(") :] for source in sources}
    assert len(ends) == 1 and ends.pop().endswith('if __name__ == "__main__":\n    launch(main, Args)\n')


def test_no_file_is_larger_or_wider_than_it_may_be(capsys):
    counts = {path: len(Path(path).read_text().splitlines()) for path in source_files()}
    with capsys.disabled():
        print("\n  lines:", ", ".join(f"{path} {n}" for path, n in sorted(counts.items())))
    too_large = {path: n for path, n in counts.items() if n > MOST_LINES.get(path, MOST_LINES_OF_MACHINERY)}
    assert not too_large, "a file that nobody reads in one go: take something out"
    for path in source_files():
        wide = [n for n, line in enumerate(Path(path).read_text().splitlines(), 1) if len(line) > WIDTH]
        assert not wide, f"{path}: lines {wide} are wider than {WIDTH}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_main_is_short_and_flat(script):
    (main,) = [n for n in ast.parse(Path(script).read_text()).body if getattr(n, "name", "") == "main"]
    assert main.end_lineno - main.lineno + 1 <= MOST_LINES_OF_MAIN[script]
    comprehensions = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
    for node in ast.walk(main):
        if isinstance(node, comprehensions):
            inner = [n for n in ast.walk(node) if isinstance(n, comprehensions)]
            flat = len(node.generators) == 1 and inner == [node]
            assert flat, f"{script}, line {node.lineno}: one `for` to each"


def test_no_script_imports_another():
    for script in SCRIPTS:
        assert not imports(script) & set(SCRIPTS)


def test_imports_run_one_way():
    """scripts -> evaluate -> verify -> machinery -> data -> what it reads with; hints stands above."""
    tools = {"machinery/hints.py"}
    below = {f"machinery/{name}.py" for name in ("tasks", "reading", "templates", "command", "names")}
    machinery = {path for path in source_files() if path.startswith("machinery/")} - tools
    floors = [set(SCRIPTS) | tools, {"evaluate.py"}, {"verify.py"}, machinery - below, {"data.py"}, below]
    for above, floor in pairwise(floors):
        for path in floor:
            assert not imports(path) & above, f"{path} imports what stands above it"
    for i, floor in enumerate(floors):
        higher = set().union(*floors[:i])
        for path in floor:
            above = higher - {"machinery/__init__.py"}
            assert not imports(path) & above, f"{path} imports what stands above it"
    left = {path: imports(path) for path in source_files()}
    while left:  # no circle: some file imports none of those that are left
        free = [path for path, needs in left.items() if not needs & left.keys() - {path}]
        assert free, f"a circle of imports among {sorted(left)}"
        for path in free:
            del left[path]


def test_guidance_is_the_same_text_in_both_guide_scripts():
    hunks = []
    for script in ("guide_grpo.py", "guide_ppo.py"):
        source = Path(script).read_text()
        start = source.index("# guidance: failed prompts are rolled out again")
        hunk = source[start : source.index("guided += hinted", start)]
        hunks.append([line.strip().replace("step, turn, 1", "step, 0, 1") for line in hunk.splitlines()])
    assert hunks[0] == hunks[1]
