"""One side of tests/benchmark.py, in a process of its own:  python tests/benchmark_side.py SIDE TASK.json

ours    a script of this repository, as a user starts it
trl     TRL's GRPOTrainer on the same prompts, in an environment that has it
bare    what no trainer can do without: a forward and a backward pass of the same tokens without padding, and
        the forward passes of sampling without choosing a token

Each leaves the same things in a file of JSON: when its steps began, what they spent their time on, how many
tokens they sampled and trained on, and the most memory. No library is imported at the top: `machinery` sets
how threads wait, and TRL is measured as its users have it, without that.
"""

import json
import re
import runpy
import sys
import time
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MOST_LOGITS = 2**28  # of the bare pass at a time, 1 GiB


def coin(completion: str, problem) -> bool:
    """The verifier of models that solve nothing: about half of the responses are right, always the same."""
    return zlib.crc32(completion.encode()) % 2 == 0


def peak_memory(process: str = "self") -> int:
    """The most bytes that a process has held, and those it has started and that still live, added up.

    What processes share counts more than once. Not resource.getrusage: that begins at what the starter held.
    """
    found = Path(f"/proc/{process}")
    most = 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", (found / "status").read_text())[1])
    for thread in (found / "task").iterdir():
        for child in (thread / "children").read_text().split():
            most += peak_memory(child)
    return most


class Notes:
    """What a side leaves: when its steps began, by the system's clock, and at last when the last one ended;
    and of each step {"seconds": {phase: s}, "sampled": tokens, "trained": tokens, "rows": trained on}."""

    def __init__(self):
        self.begins: list[float] = []
        self.steps: list[dict] = []
        self.memory = 0

    def mark(self) -> None:
        self.begins.append(time.time())

    def end(self) -> None:
        self.mark()
        self.memory = peak_memory()

    def write(self, path: str) -> None:
        from evaluate import versions

        found = {"begins": self.begins, "steps": self.steps, "memory": self.memory, "versions": versions()}
        Path(path).write_text(json.dumps(found))


def problems_and_prompts(task: dict):
    """All problems of the task, and the indices of each step's: those that our scripts draw."""
    import data

    case = task["case"]
    problems = data.load(case["data"], own_verifier=bool(case["verifier"]))
    steps = [data.draw(len(problems), case["prompts"], step, seed=0) for step in range(task["steps"])]
    return problems, steps


# ---- ours --------------------------------------------------------------------------------------------------

def ours(task: dict, notes: Notes) -> None:
    from machinery.run import Run

    steps = Run.steps

    def watched(run, **parts):
        for step in steps(run, **parts):
            notes.mark()
            yield step
            if step == task["steps"] - 1:  # before the run saves what it has trained
                notes.end()

    Run.steps = watched
    case, folder = task["case"], task["run_dir"]
    not_ours = {"name", "usual_response"}
    options = {
        **{name.replace("_", "-"): value for name, value in case.items() if name not in not_ours},
        "mini-batches": 1, "device": "cpu", "sampler": "transformers", "steps": task["steps"],
        "eval-every": 0, "eval-problems": 1, "eval-n": 1, "save-every": 0, "run-dir": folder,
    }
    if "ppo" in task["program"]:
        options["critic-warmup"] = 0
    sys.argv = [f"{task['program']}.py"]
    for name, value in options.items():
        sys.argv += [f"--{name}", str(value)]
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    for line in map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines()):
        seconds = {key.removeprefix("time/"): value for key, value in line.items() if key.startswith("time/")}
        trained = line.get("perf/update_tokens_per_s", 0) * seconds["update"]
        notes.steps.append({
            "seconds": seconds, "sampled": line["perf/rollout_tokens_per_s"] * seconds["rollout"],
            "trained": trained, "rows": line["train/rows"],
        })


# ---- TRL ---------------------------------------------------------------------------------------------------

def trl_rows_at_once(case: dict, longest: int) -> int:
    """Rows of a forward pass of TRL: as many of --micro-tokens as divide the step's into equal parts.

    Ours are packed by their true lengths: for TRL, which takes a number of rows, by the usual response's.
    """
    rows = case["prompts"] * case["n"]
    fit = max(1, case["micro_tokens"] // longest)
    return next(at_once for at_once in range(min(rows, fit), 0, -1) if rows % at_once == 0)


def import_trl():
    """TRL without vLLM, which it would load if it is installed, though it does not sample with it here."""
    hidden = sys.modules.setdefault("vllm", None) is None
    from trl import GRPOConfig, GRPOTrainer

    if hidden:
        del sys.modules["vllm"]
    return GRPOConfig, GRPOTrainer


def trl(task: dict, notes: Notes) -> None:
    GRPOConfig, GRPOTrainer = import_trl()  # and torch, before `machinery`

    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback

    import data
    from machinery.run import Clock
    from verify import Verifier

    case = task["case"]
    tokenizer = AutoTokenizer.from_pretrained(case["model"])
    problems, steps = problems_and_prompts(task)
    template = data.pick_template(case["template"], case["data"])
    rows = []
    for i in (i for drawn in steps for i in drawn):
        rows.append({"prompt": data.prompt_text(problems[i], template, tokenizer), "number": i})
    longest = max(len(tokenizer(row["prompt"]).input_ids) for row in rows) + case["usual_response"]
    verifier = Verifier(custom=case["verifier"] or None)

    def reward(completions, number, **_):
        verdicts = verifier.score(completions, [problems[i] for i in number])
        return [float(verdict.correct) for verdict in verdicts]

    class Timed(GRPOTrainer):
        """Its methods of one phase each, timed; what is between them is the rest."""

        clock = Clock()
        trained = 0

        def _prepare_inputs(self, batch):
            self.clock("update")
            inputs = super()._prepare_inputs(batch)
            self.clock("rest")
            self.trained += int(inputs["prompt_mask"].sum() + inputs["completion_mask"].sum())
            return inputs

        def _generate_single_turn(self, *args, **kwargs):
            self.clock("rest")
            found = super()._generate_single_turn(*args, **kwargs)
            self.clock("rollout", tokens=sum(map(len, found[0])))
            return found

        def _calculate_rewards(self, *args):
            self.clock("rest")
            found = super()._calculate_rewards(*args)
            self.clock("verify")
            return found

    class Steps(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            notes.mark()
            trainer.clock, trainer.trained = Clock(), 0

        def on_step_end(self, args, state, control, **_):
            trainer.clock("update")
            notes.steps.append({
                "seconds": dict(trainer.clock.seconds), "sampled": trainer.clock.tokens["rollout"],
                "trained": trainer.trained, "rows": case["prompts"] * case["n"],
            })

    at_once = trl_rows_at_once(case, longest)
    config = GRPOConfig(
        output_dir=task["run_dir"], use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[],
        model_init_kwargs={"dtype": "float32"}, learning_rate=case["lr"], lr_scheduler_type="constant",
        weight_decay=0.01, max_grad_norm=1.0, beta=0.0, loss_type="bnpo", num_iterations=1,
        num_generations=case["n"], per_device_train_batch_size=at_once,
        gradient_accumulation_steps=case["prompts"] * case["n"] // at_once,
        max_completion_length=case["max_response"], temperature=1.0, shuffle_dataset=False,
        max_steps=task["steps"], logging_steps=1, save_strategy="no",
    )
    trainer = Timed(model=case["model"], reward_funcs=reward, args=config, processing_class=tokenizer,
                    train_dataset=Dataset.from_list(rows), callbacks=[Steps()])
    trainer.train()
    notes.end()
    verifier.close()


# ---- bare --------------------------------------------------------------------------------------------------

def bare(task: dict, notes: Notes) -> None:
    import machinery  # isort: skip  # noqa: F401  threads wait as in our scripts

    import torch

    import data
    from machinery.run import Clock
    from machinery.sampler import Sampler

    case = task["case"]
    sampler = Sampler(case["model"], "transformers", "cpu")
    problems, steps = problems_and_prompts(task)
    template = data.pick_template(case["template"], case["data"])
    prompts = [data.render(sampler.tokenizer, problems[i], template) for i in steps[0]]
    groups = sampler.generate(prompts, case["n"], 1.0, case["max_response"], seed=(0, 0, 0))
    lengths = sorted((len(sample.ids) for group in groups for sample in group), reverse=True)
    prompt = round(sum(map(len, prompts)) / len(prompts))  # of the same length, the mean: no padding
    response = max(1, round(sum(lengths) / len(lengths)))
    model, rows = sampler.model, len(lengths)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    at_once = max(1, min(case["micro_tokens"] // (prompt + response),
                         MOST_LOGITS // (response * sampler.n_embeddings)))
    for _ in range(task["steps"]):
        notes.mark()
        clock = Clock()
        with torch.no_grad():
            bare_rollout(model, len(prompts), case["n"], prompt, lengths)
        clock("rollout")
        for start in range(0, rows, at_once):
            bare_pass(model, min(at_once, rows - start), prompt, response)
        clock("update")
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock("rest")
        notes.steps.append({"seconds": dict(clock.seconds), "sampled": sum(lengths),
                            "trained": rows * (prompt + response), "rows": rows})
    notes.end()


def bare_rollout(model, prompts: int, n: int, prompt: int, lengths: list[int]) -> None:
    """The forward passes of rows that are of `lengths`, longest first: a prompt is read once for `n` rows."""
    import torch

    out = model(torch.randint(model.config.vocab_size, (prompts, prompt)), use_cache=True, logits_to_keep=1)
    cache = out.past_key_values
    cache.batch_repeat_interleave(n)
    for t in range(1, lengths[0]):
        alive = sum(length > t for length in lengths)
        for layer in cache.layers:  # who has ended stands last: nothing is copied
            layer.keys, layer.values = layer.keys[:alive], layer.values[:alive]
        model(torch.randint(model.config.vocab_size, (alive, 1)), past_key_values=cache, use_cache=True)


def bare_pass(model, rows: int, prompt: int, response: int) -> None:
    """Forward and backward pass of the log-probs of responses; no logits for the prompts."""
    import torch

    ids = torch.randint(model.config.vocab_size, (rows, prompt + response))
    hidden = model.base_model(ids, use_cache=False).last_hidden_state[:, prompt - 1 : -1]
    logits = model.get_output_embeddings()(hidden)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, prompt:].flatten()).backward()


def main() -> None:
    side, path = sys.argv[1:]
    task, notes = json.loads(Path(path).read_text()), Notes()
    {"ours": ours, "trl": trl, "bare": bare}[side](task, notes)
    notes.write(task["out"])


if __name__ == "__main__":
    main()
