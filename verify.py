r"""Rewards one can check: completion + problem -> right or wrong.

    from verify import Verifier, verify
    verify(r"... so the answer is \boxed{\frac{1}{2}}", problem)                # one completion -> bool
    verdicts = Verifier(workers=2).score(completions, problems)                 # a batch -> list[Verdict]

What can be decided exactly and at once (Countdown traces, choice letters, equal strings, rational numbers) is decided
here. The rest of mathematics goes to math-verify in worker processes that are killed when they exceed the time limit, so
that no completion can stall or crash a training run. Nothing is swallowed: time-outs and errors are verdicts of their
own, and the scripts log their counts.

A verifier of your own is a function `(completion: str, problem: data.Problem) -> bool`, named as "module:function"; it
runs in the same killable workers.
"""

import argparse
import importlib
import json
import os
import re
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cache

from data import COUNTDOWN_MAX, Problem, UserError, last_box, load

WHY = ("right", "wrong", "no answer", "timeout", "error")


@dataclass(frozen=True)
class Verdict:
    correct: bool
    why: str  # one of WHY


RIGHT, WRONG, NO_ANSWER = Verdict(True, "right"), Verdict(False, "wrong"), Verdict(False, "no answer")
TIMEOUT, ERROR = Verdict(False, "timeout"), Verdict(False, "error")


# ---- what is decided at once -----------------------------------------------------------------------------------------

def countdown_verdict(completion: str, problem: Problem) -> Verdict:
    """Every move is replayed: numbers at hand, right arithmetic, all numbers used once, the last value is the target."""
    numbers = Counter(problem.meta["numbers"])
    value = None
    for line in completion.strip().split("\n"):
        match = re.fullmatch(r"(\d{1,3})([-+*/])(\d{1,3})=(\d{1,3})", line.strip())
        if match is None:
            return NO_ANSWER
        a, op, b, value = int(match[1]), match[2], int(match[3]), int(match[4])
        used = Counter([a, b])
        legal = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[op] == value and 1 <= value <= COUNTDOWN_MAX
        if not used <= numbers or not legal:
            return WRONG
        numbers = numbers - used + Counter([value])
    return RIGHT if numbers == Counter([problem.meta["target"]]) else WRONG


def normalise(answer: str) -> str:
    r"""An answer without what never changes its value: dollar signs, spaces, sizes of brackets, a full stop at the end.

    >>> normalise(r"$\dfrac{1}{2}$. ")
    '\\frac{1}{2}'
    """
    answer = answer.strip().rstrip(".").strip("$").strip()
    answer = re.sub(r"\\left(?![a-z])|\\right(?![a-z])|\\!", "", answer)
    answer = re.sub(r"\\[,;: ]|\s+", " ", answer)
    # A space goes unless it keeps two numbers apart: "1 1/2" is not 11/2, and "1, 234" are two numbers.
    answer = re.sub(r"(?<!\d)(?<!\d,) | (?!\d)|(?<=,) (?!\d{3}(?!\d))", "", re.sub(" +", " ", answer))
    return re.sub(r"\\[dt]frac", r"\\frac", answer).replace("−", "-")


def rational(answer: str) -> Fraction | None:
    r"""The exact value of a normalised integer, decimal, a/b or \frac{a}{b}; None for anything else.

    >>> rational(r"-\frac{3}{6}"), rational("1,250.5"), rational("2x")
    (Fraction(-1, 2), Fraction(2501, 2), None)
    """
    if len(answer) > 200:
        return None
    fraction = r"([-+]?)\\frac(?:\{(-?\d+)\}|(\d))(?:\{(-?\d+)\}|(\d))|([-+]?)(\d+)/(\d+)"  # \frac12 is one half
    if match := re.fullmatch(fraction, answer):
        sign, top, bottom = (part for part in match.groups() if part is not None)
        return Fraction(int(top), int(bottom)) * (-1 if sign == "-" else 1) if int(bottom) else None
    if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?|[-+]?\d{1,3}( \d{3})+(\.\d+)?", answer):
        answer = re.sub("[, ]", "", answer)
    return Fraction(answer) if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)", answer) else None


def quick_verdict(answer: str, gold: str, meta: dict | None = None) -> Verdict | None:
    """Right or wrong where it is certain without algebra, else None.

    Numbers are compared exactly, or within `meta`'s "rel_tol" (SciBench) or "abs_tol" (OlympiadBench).
    """
    answer, gold = normalise(answer), normalise(gold)
    if answer == gold:
        return RIGHT
    a, b = rational(answer), rational(gold)
    if a is None or b is None:
        return None
    meta = meta or {}
    tolerance = max(Fraction(meta.get("rel_tol", 0)) * abs(b), rational(str(meta.get("abs_tol", 0))) or 0)
    return RIGHT if abs(a - b) <= tolerance else WRONG


def choice_verdict(completion: str, problem: Problem) -> Verdict:
    answer = last_box(completion)
    if answer is None:
        return NO_ANSWER
    letter = re.sub(r"\\[a-z]+|[^A-Za-z]", "", normalise(answer))
    return RIGHT if letter.upper() == problem.answer.strip().upper() else WRONG


# ---- what needs a worker ---------------------------------------------------------------------------------------------

def math_equal(answer: str, gold: str) -> bool:
    """math-verify's judgement on two boxed expressions. Main thread only: its time limits are alarms.

    Raises TimeoutError when one of them goes off, ValueError for a gold that cannot be parsed.
    """
    from math_verify import LatexExtractionConfig, parse
    from math_verify import verify as equal
    from math_verify.errors import TimeoutException

    config = [LatexExtractionConfig(boxed_match_priority=0)]

    def judge(raise_on_error: bool) -> bool:
        gold_parsed, answer_parsed = (
            parse(f"$\\boxed{{{x}}}$", extraction_config=config, parsing_timeout=1, raise_on_error=raise_on_error)
            for x in (gold, answer)
        )
        if not gold_parsed:
            raise ValueError(f"the reference answer {gold!r} cannot be parsed")
        return equal(gold_parsed, answer_parsed, timeout_seconds=1, raise_on_error=raise_on_error)

    try:
        return judge(raise_on_error=True)
    except TimeoutException as error:
        raise TimeoutError(str(error)[:100]) from None
    except Exception:  # one of several comparisons failed: what the others say counts
        return judge(raise_on_error=False)


def work() -> None:
    """A worker: a request in JSON per line of standard input, "1", "0", "timeout" or "error" per line of standard output."""
    resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
    # The two pipes move to descriptors of their own: what a verifier, or a program that it runs, prints must not look like
    # a verdict, and what it reads must not be a request.
    requests, out = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    custom = load_function(sys.argv[2]) if len(sys.argv) > 2 else None
    if custom is None:
        math_equal("x+1", "1+x")  # imports and warms up sympy before the clock runs
    print("ready", file=out, flush=True)
    for line in requests:
        request = json.loads(line)
        try:
            if custom is not None:
                result = bool(custom(request["completion"], Problem(**request["problem"])))
            else:
                result = math_equal(request["answer"], request["gold"])
            print(int(result), file=out, flush=True)
        except TimeoutError:
            print("timeout", file=out, flush=True)
        except Exception as error:  # whatever it is, the parent counts it as a verdict of its own
            print(f"verify: {type(error).__name__}: {error}"[:300], file=sys.stderr)
            print("error", file=out, flush=True)


def load_function(name: str):
    """The function named "module:function"; the module is looked for in the working folder too."""
    module, _, function = name.partition(":")
    if not (module and function) or module.startswith("."):
        raise UserError(f"--verifier {name}: write module:function")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise UserError(f"--verifier {name}: {error}; run from the folder that holds {module}.py") from None
    if not callable(found):
        raise UserError(f"--verifier {name}: there is no function {function!r} in {module}; write module:function")
    return found


class Worker:
    """One worker process, its pipes, and the task that it is at."""

    def __init__(self, custom: str | None):
        # A process of its own session: Ctrl-C reaches the trainer alone, which then ends its workers. A plain new
        # interpreter, neither fork (unsafe beside CUDA) nor multiprocessing's spawn (imports the trainer's script again).
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), "--worker", *([custom] if custom else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if custom is None else None,
            bufsize=0,
            start_new_session=True,
        )
        self.task: tuple[int, ...] | None = None
        self.ready = False
        self.deadline = time.monotonic() + 120  # to import its libraries on a busy machine

    def send(self, task, request: dict, time_limit: float) -> None:
        message = memoryview((json.dumps(request) + "\n").encode())
        while message:
            message = message[self.process.stdin.write(message) :]
        self.task, self.deadline = task, time.monotonic() + time_limit

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # with whatever it started
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Verifier:
    """Scores batches of completions. Workers start when the first batch needs them and live until `close`."""

    def __init__(self, workers: int = 2, time_limit: float = 3.0, custom: str | None = None):
        """`workers` processes, `time_limit` seconds for each completion, `custom` = "module:function" in place of the
        built-in verifiers. Raises UserError if `custom` cannot be imported."""
        if custom is not None:
            load_function(custom)
        if workers < 1:
            raise UserError(f"--workers {workers}: the verifier needs at least 1")
        self.n_workers, self.time_limit, self.custom = workers, time_limit, custom
        self.workers: list[Worker] = []

    def score(self, completions: list[str], problems: list[Problem]) -> list[Verdict]:
        """One verdict per completion, in order. Never raises for a bad completion."""
        assert len(completions) == len(problems), f"{len(completions)} completions for {len(problems)} problems"
        verdicts: list[Verdict | None] = [None] * len(completions)
        requests: dict[str, list[int]] = {}  # equal questions are asked once
        for i, (completion, problem) in enumerate(zip(completions, problems)):
            request = None
            if self.custom is not None:
                request = {"completion": completion, "problem": asdict(problem)}
            elif problem.domain == "countdown":
                verdicts[i] = countdown_verdict(completion, problem)
            elif problem.domain == "choice":
                verdicts[i] = choice_verdict(completion, problem)
            elif problem.domain == "math":
                answer = last_box(completion)
                verdicts[i] = NO_ANSWER if answer is None else quick_verdict(answer, problem.answer, problem.meta)
                request = {"answer": answer, "gold": problem.answer}
            else:
                raise UserError(f"problem {problem.id}: there is no verifier for the domain {problem.domain!r} yet")
            if verdicts[i] is None:
                requests.setdefault(json.dumps(request), []).append(i)
        if requests:
            self._ask_workers(requests, verdicts)
        return verdicts

    def ask(self, problems: dict[int, Problem]) -> dict[int, Verdict]:
        """The workers' verdict on each reference answer against itself, without the quick ways."""
        verdicts: dict[int, Verdict] = {}
        requests: dict[str, list[int]] = {}
        for i, problem in problems.items():
            requests.setdefault(json.dumps({"answer": problem.answer, "gold": problem.answer}), []).append(i)
        if requests:
            self._ask_workers(requests, verdicts)
        return verdicts

    def _ask_workers(self, requests: dict[str, list[int]], verdicts) -> None:
        """Fills `verdicts` at the rows of each request."""
        tasks = deque((json.loads(request), tuple(rows)) for request, rows in requests.items())
        self.workers += [Worker(self.custom) for _ in range(min(self.n_workers, len(tasks)) - len(self.workers))]
        selector = selectors.DefaultSelector()
        for worker in self.workers:
            selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        deaths = 0  # of workers that had no task: something is wrong with the installation, not with a completion
        while tasks or any(worker.task for worker in self.workers):
            for worker in self.workers:
                if worker.ready and worker.task is None and tasks:
                    request, rows = tasks.popleft()
                    try:
                        worker.send(rows, request, self.time_limit)
                    except BrokenPipeError:  # it died since the last batch: its successor gets the task
                        tasks.appendleft((request, rows))
                        self._replace(worker, selector)
                        break
            waiting = [w.deadline for w in self.workers if w.task or not w.ready]
            events = selector.select(max(0.0, min(waiting) - time.monotonic()))
            for key, _ in events:
                worker = key.data
                line = worker.process.stdout.readline().strip().decode()
                if line == "ready":
                    worker.ready = True
                elif line:
                    self._settle(worker, {"1": RIGHT, "0": WRONG, "timeout": TIMEOUT}.get(line, ERROR), verdicts)
                else:  # end of file: it died, of its memory limit for instance
                    deaths += worker.task is None
                    self._settle(worker, ERROR, verdicts)
                    self._replace(worker, selector)
            for worker in list(self.workers):
                if (worker.task or not worker.ready) and time.monotonic() > worker.deadline:
                    deaths += worker.task is None
                    self._settle(worker, TIMEOUT, verdicts)
                    self._replace(worker, selector)
            if deaths > 3:
                self.close()
                raise UserError(f"verifier workers do not start: `python verify.py --worker {self.custom or ''}` says why")
        selector.close()

    @staticmethod
    def _settle(worker: Worker, verdict: Verdict, verdicts) -> None:
        for row in worker.task or ():
            verdicts[row] = verdict
        worker.task = None

    def _replace(self, worker: Worker, selector) -> None:
        selector.unregister(worker.process.stdout)
        worker.kill()
        self.workers[self.workers.index(worker)] = new = Worker(self.custom)
        selector.register(new.process.stdout, selectors.EVENT_READ, new)

    def close(self) -> None:
        """End the workers. A closed Verifier may be used again: it starts new ones."""
        while self.workers:
            self.workers.pop().kill()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@cache
def _shared_verifier() -> Verifier:
    return Verifier(workers=1)


def verify(completion: str, problem: Problem) -> bool:
    """Whether one completion solves the problem. For batches use a Verifier."""
    return _shared_verifier().score([completion], [problem])[0].correct


def gold_completion(problem: Problem) -> str:
    """A completion that must verify: the reference trace of Countdown, the boxed answer elsewhere."""
    return problem.solution if problem.domain == "countdown" else f"\\boxed{{{problem.answer}}}"


def check_golds(problems: list[Problem], verifier: Verifier) -> list[Problem]:
    """The problems whose reference answer verifies against itself; the others are named on standard error.

    Equal strings are equal at once, so up to 32 mathematical answers also go the long way, through math-verify in a worker:
    a broken installation must not pass for a hard data set.
    Raises UserError if more than 1 % fail: training on rewards that cannot be earned teaches nothing. A verifier of
    the user's own is not checked, since only it knows what a right completion looks like.
    """
    if verifier.custom is not None:
        return problems
    verdicts = verifier.score([gold_completion(p) for p in problems], problems)
    math = [i for i, p in enumerate(problems) if p.domain == "math"]
    for i, verdict in verifier.ask({i: problems[i] for i in math[:: max(1, len(math) // 32)][:32]}).items():
        verdicts[i] = verdict if verdicts[i].correct else verdicts[i]
    failed = [(p.id, v.why) for p, v in zip(problems, verdicts) if not v.correct]
    if failed:
        named = ", ".join(f"{id} ({why})" for id, why in failed[:20])
        message = f"{len(failed)} of {len(problems)} reference answers do not verify against themselves: {named}"
        if len(failed) > 0.01 * len(problems):
            raise UserError(f"{message}: mend the answers, or bring a verifier of your own with --verifier module:function")
        print(f"{message}: left out", file=sys.stderr)
    bad = {id for id, _ in failed}
    return [p for p in problems if p.id not in bad]


def main() -> None:
    parser = argparse.ArgumentParser(description="Verify one completion, or every reference answer of a data set.")
    parser.add_argument("--answer", help="the reference answer")
    parser.add_argument("--completion", help=r"a completion with its answer in \boxed{}")
    parser.add_argument("--data", help="a data set whose reference answers to check against themselves")
    parser.add_argument("--split", default="train")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with Verifier(args.workers) as verifier:
        if args.data:
            problems = load(args.data, args.split)
            kept = check_golds(problems, verifier)
            print(f"{args.data}: {len(kept)} of {len(problems)} reference answers verify against themselves")
        elif args.answer is not None and args.completion is not None:
            verdict = verifier.score([args.completion], [Problem("cli", "", args.answer)])[0]
            print(verdict.why)
            sys.exit(0 if verdict.correct else 1)
        else:
            raise UserError("give --answer and --completion, or --data")


if __name__ == "__main__":
    try:
        work() if sys.argv[1:2] == ["--worker"] else main()
    except UserError as error:
        sys.exit(f"error: {error}")
