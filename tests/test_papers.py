"""docs/papers.md, first-run.md, pages to learn from: what they name exists, commands are taken."""

import ast
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import tyro

from data import Problem, prompt_text
from machinery.run import check_ranges


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("#")[0] for line in lines if re.match(r"python \w+\.py", line)]


PAPERS = commands(Path("docs/papers.md"))
FIRST_RUN = commands(Path("docs/first-run.md"))
METHODS = ["grpo", "guide", "nsr", "ppo"]
OF_METHODS = [command for page in METHODS for command in commands(Path(f"docs/{page}.md"))]
READING = commands(Path("docs/reading-order.md"))


@pytest.mark.parametrize("command", PAPERS + FIRST_RUN + OF_METHODS + READING)
def test_a_command_of_a_page_is_taken(command):
    command = command.replace("--template T", "--template plain")
    _, script, *options = shlex.split(command)
    module = import_module(script.removesuffix(".py"))
    args = tyro.cli(module.Args, args=options)
    check_ranges(args, greedy=script == "evaluate.py")
    for name in [option[2:].replace("-", "_") for option in options if option.startswith("--")]:
        default = module.Args.__dataclass_fields__.get(name)
        assert default is not None or name.startswith("no_")


def test_the_page_has_commands_for_every_script():
    told = {shlex.split(command)[1] for command in PAPERS}
    assert told == {"grpo.py", "guide_grpo.py", "ppo.py", "guide_ppo.py", "nsr.py", "evaluate.py"}


@pytest.mark.parametrize(
    "page, found, commands, metrics", [("first-run", FIRST_RUN, 8, 12), ("reading-order", READING, 6, 8)]
)
def test_a_page_names_metrics_that_exist(page, found, commands, metrics):
    assert len(found) == commands
    metric = r"`([a-z]+/\w+)`"
    named = set(re.findall(metric, Path(f"docs/{page}.md").read_text()))
    assert len(named) > metrics and named <= set(re.findall(metric, Path("docs/metrics.md").read_text()))


@pytest.mark.parametrize("page", [*METHODS, "reading-order", "teaching"])
def test_the_details_name_functions_that_exist(page):
    named = re.findall(r"`(\w+(?:/\w+)*\.py): (\w+)`", Path(f"docs/{page}.md").read_text())
    assert len(named) > 8
    for path, name in named:
        nodes = [node for node in ast.walk(ast.parse(Path(path).read_text())) if hasattr(node, "name")]
        assert name in {node.name for node in nodes}, f"docs/{page}.md: {path} has no {name}"


ADD = Problem("p", "What is 2+3?", "5", hint="Count on from 2.")
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."


@pytest.mark.parametrize("template, start, end", [
    ("qwen3-math",
     "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nWhat is 2+3?\n",
     f"\n{BOXED}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n"),
    ("llama-math", "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant.<|eot_id|>"
     "<|start_header_id|>user<|end_header_id|>\n\nWhat is 2+3?\n",
     f"\n{BOXED}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
    ("guide-llama", "<|start_header_id|>user<|end_header_id|>\n\nSolve the following math problem",
     "Problem: What is 2+3?<|eot_id|>\n<|start_header_id|>assistant<|end_header_id|>\n\n"),
])
def test_prompts_of_the_papers_code(template, start, end):
    text = prompt_text(ADD, template)
    assert text.startswith(start) and text.endswith(end)
    assert prompt_text(ADD, template, hinted=True) == text.replace("2+3?", "2+3?\n\nHint: Count on from 2.")
