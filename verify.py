r"""Rewards one can check: completion + problem -> right or wrong.

    from verify import Verifier
    verdicts = Verifier(workers=2).score(completions, problems)   # list[Verdict]

Mathematics: machinery/answers.py says when two answers are the same. Code: machinery/sandbox.py runs the
program, which is only ever asked for results; the tests stay outside. Both, and a verifier of your own, run
in the processes of machinery/workers.py, which are killed when they exceed the time limit: no completion can
stall or crash a training run. Nothing is swallowed: time-outs and errors are verdicts of their own, and the
scripts log their counts. docs/verify.md has the rules and figures.

A verifier of your own is a function `(completion: str, problem: data.Problem) -> bool`: "module:function".

    python verify.py --answer "\frac{1}{2}" --completion "... \boxed{0.5}"      # one completion
    python verify.py --data FILE                              # reference answers against themselves
    python verify.py --data FILE --verifier my_rewards:right  # .. by a verifier of your own
    python verify.py --data FILE --completions FILE           # what you have sampled
    python verify.py --cases FILE --require 0.99              # labelled cases: accuracy, false positives
"""

import re
import sys
import time
from collections import Counter
from dataclasses import dataclass

from data import Problem, UserError, last_box, load
from machinery import answers, sandbox
from machinery.choice import choice_of
from machinery.command import run_command
from machinery.fences import fenced_blocks
from machinery.labelled import read_cases, read_completions
from machinery.reading import answer_of
from machinery.tasks import COUNTDOWN_MAX
from machinery.workers import Pool, fork_workers, load_function

WHY = ("right", "wrong", "no answer", "timeout", "error")
MATH_SECONDS, MATH_MEMORY = 1.5, 2.0  # of wall time for a comparison; GB for a built-in verifier's process


@dataclass(frozen=True)
class Verdict:
    correct: bool
    why: str  # one of WHY


VERDICTS = {why: Verdict(why == "right", why) for why in WHY}
RIGHT, WRONG, NO_ANSWER, TIMEOUT, ERROR = VERDICTS.values()

# ---- decided at once ---------------------------------------------------------------------------------------

def countdown_verdict(completion: str, problem: Problem) -> Verdict:
    """Every move is replayed: numbers at hand, right arithmetic, all used once, the target at the end."""
    numbers = Counter(problem.meta["numbers"])
    value = None
    for line in completion.strip().split("\n"):
        match = re.fullmatch(r"(\d{1,3})([-+*/])(\d{1,3})=(\d{1,3})", line.strip())
        if match is None:
            return NO_ANSWER
        a, op, b, value = int(match[1]), match[2], int(match[3]), int(match[4])
        used = Counter([a, b])
        right = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[op] == value
        if not (used <= numbers and right and 1 <= value <= COUNTDOWN_MAX):
            return WRONG
        numbers = numbers - used + Counter([value])
    return RIGHT if numbers == Counter([problem.meta["target"]]) else WRONG


def choice_verdict(completion: str, problem: Problem) -> Verdict:
    r"""The box has the letter, in any font and brackets; the option's text may follow: \boxed{B: Paris}."""
    answer = last_box(completion)
    if answer is None:
        return NO_ANSWER
    return RIGHT if choice_of(answer, problem.question) == problem.answer.strip().upper() else WRONG


# ---- batches -----------------------------------------------------------------------------------------------

class Verifier:
    """Scores batches of completions. Workers start when the first batch needs them and live until `close`."""

    def __init__(self, workers: int = 2, time_limit: float = 3.0, custom: str | None = None,
                 memory: float = 4.0, code_seconds: int = sandbox.CODE_SECONDS):
        """`workers` processes. `custom` = "module:function" in place of the built-in verifiers: `time_limit`
        seconds for a completion, `memory` GB for a process. `code_seconds` of CPU time for a program: whole
        ones, and twice that of wall time. Raises UserError if `custom` cannot be imported."""
        if custom is not None:
            load_function(custom)
        if workers < 1:
            raise UserError(f"--workers {workers}: the verifier needs at least 1")
        for flag, value in (("--verifier-seconds", time_limit), ("--verifier-memory", memory)):
            if not 0 < value < 1e6:  # nan is neither
                raise UserError(f"{flag} {value}: give a number above 0")
        self.time_limit, self.custom, self.code_seconds = time_limit, custom, code_seconds
        self.pool = Pool(workers, memory if custom else MATH_MEMORY, custom or "")
        self.sandbox = ""  # how programs are kept in, once it is known
        self.judged = False  # a batch

    def score(self, completions: list[str], problems: list[Problem]) -> list[Verdict]:
        """One verdict per completion, in order. Never raises for a bad completion."""
        assert len(completions) == len(problems), f"{len(completions)} completions, {len(problems)} problems"
        verdicts: list[Verdict | None] = [None] * len(completions)
        tasks: dict[tuple, tuple[tuple, float, list[int]]] = {}  # equal questions are asked once
        for row, (completion, problem) in enumerate(zip(completions, problems)):
            found = self._task(completion, problem)
            if isinstance(found, Verdict):
                verdicts[row] = found
            else:
                key, request, seconds = found
                tasks.setdefault(key, (request, seconds, []))[2].append(row)
        whys = self.pool.ask([(request, seconds) for request, seconds, _ in tasks.values()])
        if self.custom and not self.judged and tasks and {*whys} <= {"error", "timeout"}:
            failed = f"judged none of the first {len(whys)} completions ({dict(Counter(whys))})"
            remedy = "mend it, or raise --verifier-seconds or --verifier-memory"
            raise UserError(f"--verifier {self.custom} {failed}: {remedy}")
        self.judged = self.judged or bool(tasks)
        for why, (_, _, rows) in zip(whys, tasks.values()):
            for row in rows:
                verdicts[row] = VERDICTS[why]
        return verdicts

    def _task(self, completion: str, problem: Problem) -> Verdict | tuple[tuple, tuple, float]:
        """What can be said without reading an answer; or a key that equal questions share, the request to a
        worker, and its seconds."""
        if self.custom is not None:
            return (id(problem), completion), ("custom", completion, problem), self.time_limit
        if problem.domain == "countdown":
            return countdown_verdict(completion, problem)
        if problem.domain == "choice":
            return choice_verdict(completion, problem)
        if problem.domain == "math":
            answer, gold = last_box(completion), problem.answer
            meta = {key: problem.meta[key] for key in ("rel_tol", "abs_tol", "unit") if key in problem.meta}
            request = ("math", answer, gold, meta), min(MATH_SECONDS, self.time_limit)
            return NO_ANSWER if answer is None else ((answer, gold, repr(meta)), *request)
        if problem.domain == "code":
            tests, blocks = problem.meta.get("tests"), fenced_blocks(completion)
            if not isinstance(tests, dict) or tests.get("type") not in ("assert", "stdio"):
                wanted = "{type: assert, code} or {type: stdio, cases}"
                raise UserError(f"problem {problem.id} has no tests: {wanted}")
            if not blocks:
                return NO_ANSWER
            self.sandbox = self.sandbox or self._find_sandbox()
            request = ("program", blocks, tests, self.sandbox, self.code_seconds)
            return (id(problem), *blocks), request, 2 * self.code_seconds + 30  # it cleans up by itself
        raise UserError(f"problem {problem.id}: there is no verifier for the domain {problem.domain!r} yet")

    def score_groups(self, groups: list[list], problems: list[Problem]) -> list[list[Verdict]]:
        """Verdicts of groups of samples, which have a `text`, one group for each problem."""
        texts = [sample.text for group in groups for sample in group]
        of_texts = [problem for problem, group in zip(problems, groups, strict=True) for _ in group]
        verdicts = iter(self.score(texts, of_texts))
        return [[next(verdicts) for _ in group] for group in groups]

    def _find_sandbox(self) -> str:
        """Asks a worker how programs can be kept in, and says so. Raises UserError if they cannot."""
        (mode,) = self.pool.ask([(("sandbox",), 60)])
        if mode not in sandbox.MODES:
            needs = "either the right to make user namespaces, or root and a Python that other users can read"
            raise UserError(f"programs need a sandbox: util-linux 2.34 or newer, and {needs}")
        print(f"code sandbox: {sandbox.MODES[mode]}", file=sys.stderr, flush=True)
        return mode

    def close(self) -> None:
        """End the workers. A closed Verifier may be used again: it starts new ones."""
        self.pool.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


# ---- checks ------------------------------------------------------------------------------------------------

def gold_completion(problem: Problem) -> str:
    """A completion that must verify: a reference trace, a reference program, or the answer in a box."""
    if problem.domain == "code":
        return f"``````python\n{problem.answer}\n``````"
    if problem.domain == "countdown":
        return problem.solution
    answer = answers.plain(problem.answer) if problem.domain == "math" else problem.answer
    return "" if answer is None else f"\\boxed{{{answer}}}"


def check_golds(problems: list[Problem], verifier: Verifier) -> list[Problem]:
    """The problems whose reference answer verifies, and whose tests fail a program that does nothing.

    The others are named on standard error. Raises UserError if they are more than 1 %: rewards that cannot be
    earned, or need not be, teach nothing. A verifier of the user's own is not checked: only it knows what is
    right.
    """
    if verifier.custom is not None:
        return problems
    bad, golds = {}, [gold_completion(problem) for problem in problems]
    verdicts = verifier.score(golds, problems)
    late = [i for i, verdict in enumerate(verdicts) if verdict.why == "timeout"]  # once more: a busy machine
    again = verifier.score([golds[i] for i in late], [problems[i] for i in late])
    for i, verdict in zip(late, again):
        verdicts[i] = verdict
    for problem, gold, verdict in zip(problems, golds, verdicts):
        if not verdict.correct:
            bad[problem.id] = verdict.why if gold else "no answer can meet it"
    programs = [problem for problem in problems if problem.domain == "code"]
    nothing = [f"```python\n{sandbox.NOTHING}```"] * len(programs)
    for problem, verdict in zip(programs, verifier.score(nothing, programs)):
        if verdict.correct:
            bad[problem.id] = "a program that does nothing passes its tests"
    seconds = verifier.code_seconds
    constants = [(("constant", problem.meta["tests"], seconds), 15 * seconds) for problem in programs]
    for problem, why in zip(programs, verifier.pool.ask(constants)):
        if why == "right" and problem.id not in bad:
            bad[problem.id] = "a program that always returns the same, or raises, passes its tests"
    if bad:
        named = ", ".join(f"{id} ({why})" for id, why in [*bad.items()][:20])
        message = f"{len(bad)} of {len(problems)} reference answers do not verify against themselves: {named}"
        if len(bad) > 0.01 * len(problems):
            raise UserError(f"{message}: mend the answers (tests have to compare results of the program), or "
                            "bring a verifier of your own with --verifier module:function")
        print(f"{message}: left out", file=sys.stderr)
    return [problem for problem in problems if problem.id not in bad]


def run_cases(path: str, verifier: Verifier, require: float) -> bool:
    """Prints accuracy, false positives and negatives by kind; whether `require` is reached."""
    cases = read_cases(path)
    completions, problems = [case.completion for case in cases], [case.problem for case in cases]
    start = time.monotonic()
    verdicts = verifier.score(completions, problems)
    seconds = time.monotonic() - start
    of = Counter(case.kind for case in cases)
    false = {True: Counter(), False: Counter()}  # positives and negatives, by kind
    for case, verdict in zip(cases, verdicts):
        false[verdict.correct][case.kind] += verdict.correct != case.correct
    for kind in sorted(+false[True] | +false[False]):
        positive, negative = false[True][kind], false[False][kind]
        print(f"{kind:<28}{positive:>4} false positives{negative:>4} false negatives  of {of[kind]}")
    positive, negative = false[True].total(), false[False].total()
    accuracy = 1 - (positive + negative) / len(cases)
    print(f"accuracy {accuracy:.4f}, {positive} false positives, {negative} false negatives of {len(cases)}; "
          f"{seconds:.1f} s; verdicts {dict(Counter(v.why for v in verdicts))}")
    return accuracy >= require


def run_data(args, verifier: Verifier) -> None:
    """Prints the verdicts on --completions or, without them, on the reference answers."""
    problems = load(args.data, args.split, own_verifier=bool(args.verifier))
    rows = [(p.domain, gold_completion(p), p) for p in problems]  # (what it is, completion, problem)
    if args.completions:
        rows = read_completions(args.completions, problems)
    elif args.verifier:
        rows = [("boxed", text, p) for _, text, p in rows] + [("bare", p.answer, p) for p in problems]
    kinds, texts, of = zip(*rows)
    verdicts = verifier.score(texts, of)
    print(f"{'':<20}{'rows':>6}" + "".join(f"{why:>11}" for why in WHY))
    for kind in sorted(set(kinds)):
        counts = Counter(verdict.why for other, verdict in zip(kinds, verdicts) if other == kind)
        print(f"{kind:<20}{counts.total():>6}" + "".join(f"{counts[why]:>11}" for why in WHY))
    if args.completions or args.verifier:
        for number in range(0, len(rows), max(1, len(rows) // 10)):
            text, problem = texts[number][-60:], of[number]
            print(f"{kinds[number]} {problem.id}: {verdicts[number].why} for {text!r}")
    else:
        kept = check_golds(problems, verifier)
        print(f"{args.data}: {len(kept)} of {len(problems)} reference answers verify against themselves")


@dataclass
class Args:
    answer: str = ""  # the reference answer
    completion: str = ""  # with its answer in \boxed{}
    data: str = ""  # problems whose reference answers to check against themselves
    split: str = "train"  # of --data, if that is a hub id or an embedded task; a part of any: train[:100]
    completions: str = ""  # a file of completions of --data: completion, and id or index of the problem
    cases: str = ""  # a file of labelled cases
    require: float = 0.0  # the accuracy on --cases below which the exit code is 1
    verifier: str = ""  # module:function of your own, (completion, problem) -> bool
    verifier_seconds: float = 3.0  # for a completion, of your own verifier
    verifier_memory: float = 4.0  # GB for each of its processes
    workers: int = 2  # verifier processes


def main() -> None:
    import tyro  # slow to import

    args = tyro.cli(Args, description=__doc__)
    seconds, memory = args.verifier_seconds, args.verifier_memory
    with Verifier(args.workers, seconds, args.verifier or None, memory) as verifier:
        if args.cases:
            sys.exit(0 if run_cases(args.cases, verifier, args.require) else 1)
        elif args.data:
            run_data(args, verifier)
        elif args.answer and args.completion:
            verdict = verifier.score([args.completion], [Problem("cli", "", answer_of(args.answer))])[0]
            print(verdict.why)
            sys.exit(0 if verdict.correct else 1)
        else:
            raise UserError("give --answer and --completion, or --data, or --cases")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        run_command(lambda: fork_workers(*sys.argv[2:]))
    else:
        run_command(main)
