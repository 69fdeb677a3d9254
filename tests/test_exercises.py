"""The exercises of docs/reading-order.md: each change, made as the page says, fails the test that it names.

The page is read, nothing of it is repeated here. Every change is made in a copy of the repository of its own,
and the test runs there in a process of its own: forked from one that has loaded torch and transformers, which
take ten times as long as the tests. That the tests pass without the change is the rest of this suite.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PAGE = Path("docs/reading-order.md").read_text()
TITLES = re.findall(r"^### (\d+\. .*)$", PAGE, re.MULTILINE)

# One line of input, one exercise: the folder and pytest's arguments.
RUNNER = """
import os, sys
import pytest, torch.distributed.checkpoint, transformers.models.qwen2.modeling_qwen2
for line in sys.stdin:
    folder, *arguments = line.split("\\t")
    if os.fork() == 0:
        os.chdir(folder)
        said = os.open("said.txt", os.O_CREAT | os.O_WRONLY)
        os.dup2(said, 1), os.dup2(said, 2)
        code = pytest.main([word.strip() for word in arguments])
        sys.stdout.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def blocks(title: str) -> tuple[str, list[str], list[str]]:
    """An exercise's change, its test command in words, and the lines that the test says."""
    section = PAGE[PAGE.index(f"### {title}\n") :].split("\n### ")[0]
    change, command = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)[:2]
    (said,) = re.findall(r"```text\n(.*?)```", section, re.DOTALL)
    assert change.startswith("git apply <<'END'\n") and change.endswith("\nEND\n")
    assert command.startswith("pytest tests/test_") and " -k " in command
    return change, shlex.split(command)[1:], said.splitlines()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, tuple[int, str]]:
    """Of each exercise: pytest's exit code and what it said."""
    home, lines = tmp_path_factory.mktemp("exercises"), []
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PY")}  # PYTHONPATH
    environment["GIT_CEILING_DIRECTORIES"] = str(home)  # the copies are of no repository
    folders = {title: home / title.split(".")[0] for title in TITLES}
    for title, folder in folders.items():
        change, words, _ = blocks(title)
        folder.mkdir()
        for path in (*Path(".").glob("*.py"), Path("pyproject.toml")):
            shutil.copy(path, folder)
        for name in ("machinery", "tests"):
            shutil.copytree(name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "assets").symlink_to(Path("assets").resolve())
        done = subprocess.run(["bash", "-c", change], cwd=folder, capture_output=True, text=True,
                              env=environment)
        assert done.returncode == 0, f"{title}: the page and the code have drifted apart: {done.stderr}"
        lines.append("\t".join([str(folder), *words, "-p", "no:cacheprovider"]) + "\n")
    done = subprocess.run([sys.executable, "-c", RUNNER], input="".join(lines), capture_output=True,
                          text=True, env=environment)
    assert done.returncode == 0, done.stderr
    codes = map(int, done.stdout.split())
    return {title: (code, (folders[title] / "said.txt").read_text()) for title, code in zip(TITLES, codes)}


def plain(text: str) -> str:
    """Spaces and long fractions as one each: pytest aligns its tables, and processors round differently."""
    return re.sub(r"\d+\.\d{3,}", "#", re.sub(r"\s+", " ", text))


def test_there_are_six_and_the_teachers_table_has_them():
    assert [title.split(".")[0] for title in TITLES] == list("123456")
    table = re.findall(r"^\| (\d) \|.*`pytest (.*?)`", Path("docs/teaching.md").read_text(), re.MULTILINE)
    assert table == [(title.split(".")[0], shlex.join(blocks(title)[1])) for title in TITLES]


@pytest.mark.parametrize("title", TITLES)
def test_an_exercise_fails_the_test_that_it_names(title, outcomes):
    code, output = outcomes[title]
    assert code == pytest.ExitCode.TESTS_FAILED, output
    for line in blocks(title)[2]:
        assert plain(line) in plain(output), output
