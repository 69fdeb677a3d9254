"""docs/papers.md, first-run.md, pages to learn from: what they name exists, commands are taken."""

import ast
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest
import tyro
from torch.distributed.run import get_args_parser

from data import Problem, prompt_text
from machinery.ranges import check_ranges


def lines_of(page: Path) -> list[str]:
    """Of its bash blocks, without indentation and comments."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines]


def commands(page: Path) -> list[str]:
    """The scripts' command lines; of a loop, those of every round."""
    found, rounds = [], [("", "")]
    for line in lines_of(page):
        loop = re.fullmatch(r"for (\w+) in (.+); do", line)
        if loop:
            rounds = [(f"${loop[1]}", value) for value in loop[2].split()]
        elif line == "done":
            rounds = [("", "")]
        elif re.match(r"python \w+\.py|torchrun ", line):
            found += [line.replace(name, value) for name, value in rounds]
    return found


def spread(braces: re.Match) -> str:
    """a{1,2}.json is a1.json a2.json"""
    return " ".join(f"{braces[1]}{part}{braces[3]}" for part in braces[2].split(","))


def words_of(command: str) -> list[str]:
    """The script and its options, as bash and torchrun hand them on."""
    first, *words = shlex.split(re.sub(r"(\S*)\{([^{}]+,[^{}]+)\}(\S*)", spread, command))
    if first == "torchrun":
        launch = get_args_parser().parse_args(words)
        words = [launch.training_script, *launch.training_script_args]
    return words


def args_of(command: str, monkeypatch):
    """What the script would see."""
    script, *options = words_of(command)
    module = import_module(script.removesuffix(".py"))
    if script != "evaluate.py":
        return tyro.cli(module.Args, args=options)
    monkeypatch.setattr(sys, "argv", [script, *options])
    return module.read_args()  # with those of its --preset


PAGE = Path("docs/papers.md")
PAPERS = commands(PAGE)
FIRST_RUN = commands(Path("docs/first-run.md"))
METHODS = ["grpo", "guide", "nsr", "ppo"]
OF_METHODS = [command for page in METHODS for command in commands(Path(f"docs/{page}.md"))]
READING = commands(Path("docs/reading-order.md"))


@pytest.mark.parametrize("command", PAPERS + FIRST_RUN + OF_METHODS + READING)
def test_a_command_of_a_page_is_taken(command, monkeypatch):
    command = command.replace("--template T", "--template plain")
    script, *options = words_of(command)
    module = import_module(script.removesuffix(".py"))
    check_ranges(args_of(command, monkeypatch), greedy=script == "evaluate.py")
    for name in [option[2:].replace("-", "_") for option in options if option.startswith("--")]:
        default = module.Args.__dataclass_fields__.get(name)
        assert default is not None or name.startswith("no_")


def test_the_page_has_commands_for_every_script():
    told = {words_of(command)[0] for command in PAPERS}
    assert told == {"grpo.py", "guide_grpo.py", "ppo.py", "guide_ppo.py", "nsr.py", "evaluate.py"}
    for line in lines_of(PAGE):
        assert re.match(r"(python \w+\.py|torchrun|for .+; do$|done$)", line), f"not looked at: {line}"
    starts = [command.split()[0] for command in PAPERS]
    assert starts.count("torchrun") == 1 and "$" not in "".join(PAPERS)
    assert sum("--step " in command for command in PAPERS) == 6  # a loop's


def test_the_page_evaluates_what_it_has_trained_in_the_same_prompt(monkeypatch):
    template_of, written, evaluated = {}, set(), set()
    for command in PAPERS:
        args = args_of(command, monkeypatch)
        if words_of(command)[0] != "evaluate.py":
            template_of[args.model] = template_of[args.run_dir] = args.template
        elif args.compare:
            assert {name.removesuffix("/eval_base.json") for name in args.compare} <= {*written, *template_of}
        else:
            assert args.template == template_of[args.model], command
            evaluated.add(args.model)
            written.add(args.out)
    trained = {name for name in template_of if name.startswith("runs/")}
    assert trained < evaluated and len(trained) == 24 and "meta-llama/Llama-3.1-8B-Instruct" in evaluated


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


@pytest.mark.parametrize("page", METHODS)
def test_the_details_are_numbered_one_a_paragraph(page):
    text = Path(f"docs/{page}.md").read_text()
    starts = [int(number) for number in re.findall(r"^(\d+)\. \*", text, re.MULTILINE)]
    assert len(starts) > 8 and starts == list(range(1, len(starts) + 1))
    assert not re.search(r"(?<!^)(?<!\n)\b\d+\.\s+\*[A-Z]", text), "a detail inside another's paragraph"


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
