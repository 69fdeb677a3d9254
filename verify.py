r"""Rewards one can check: completion + problem -> right or wrong.

    from verify import Verifier, verify
    verify(r"... so the answer is \boxed{\frac{1}{2}}", problem)                # one completion -> bool
    verdicts = Verifier(workers=2).score(completions, problems)                 # a batch -> list[Verdict]

Mathematics: machinery/answers.py says when two answers are the same. Code: machinery/sandbox.py runs the
program, which is only ever asked for results; the tests stay outside. What takes long or is not ours runs in
worker processes that are killed when they exceed the time limit, so no completion can stall or crash a
training run. Nothing is swallowed: time-outs and errors are verdicts of their own, and the scripts log their
counts. docs/verify.md has the rules and figures.

A verifier of your own is a function `(completion: str, problem: data.Problem) -> bool`, named as
"module:function"; it runs in the same killable workers.

    python verify.py --answer "\frac{1}{2}" --completion "... \boxed{0.5}"      # one completion
    python verify.py --data FILE                              # reference answers against themselves
    python verify.py --cases FILE --require 0.99              # labelled cases: accuracy, false positives
"""

import ctypes
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
from functools import cache
from pathlib import Path

from data import Problem, UserError, last_box, load, read_file
from machinery.answers import math_equal, quick_equal
from machinery.sandbox import CODE_SECONDS, Stopped, code_why, last_program, report_sandbox
from machinery.tasks import COUNTDOWN_MAX

WHY = ("right", "wrong", "no answer", "timeout", "error")
MATH_SECONDS = 1.5  # of wall time for one comparison; the worker gives up by itself after 1 s of CPU time


@dataclass(frozen=True)
class Verdict:
    correct: bool
    why: str  # one of WHY


RIGHT, WRONG, NO_ANSWER = Verdict(True, "right"), Verdict(False, "wrong"), Verdict(False, "no answer")
TIMEOUT, ERROR = Verdict(False, "timeout"), Verdict(False, "error")
VERDICTS = {verdict.why: verdict for verdict in (RIGHT, WRONG, NO_ANSWER, TIMEOUT, ERROR)}

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
    answer = last_box(completion)
    if answer is None:
        return NO_ANSWER
    letter = re.sub(r"\\[a-z]+|[^A-Za-z]", "", answer)
    return RIGHT if letter.upper() == problem.answer.strip().upper() else WRONG


def quick_verdict(answer: str, gold: str, meta: dict | None = None) -> Verdict | None:
    """Right or wrong where it is certain without algebra, else None."""
    right = quick_equal(answer, gold, meta)
    return None if right is None else RIGHT if right else WRONG


# ---- workers -----------------------------------------------------------------------------------------------

def work() -> None:
    """A worker: a request in JSON per line of standard input, one of WHY per line of standard output."""
    # The two pipes move to descriptors of their own: what a verifier, or a program that it runs, prints must
    # not look like a verdict, and what it reads must not be a request.
    requests, out = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    # Subreaper: what a program leaves behind becomes a child of the worker, which ends it.
    ctypes.CDLL(None).prctl(36, 1)
    sys.set_int_max_str_digits(0)
    custom = load_function(sys.argv[2]) if len(sys.argv) > 2 else None
    limit = (4 if custom else 2) * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    # Imports and warms up sympy before the clock runs.
    if custom is None and not within(60, math_equal, "x+1", "1+x"):
        raise UserError("the installed sympy, math-verify and latex2sympy2-extended do not find x+1 = 1+x")
    print("ready", file=out, flush=True)
    for line in requests:
        request = json.loads(line)
        try:
            if custom is not None:
                why = "right" if custom(request["completion"], Problem(**request["problem"])) else "wrong"
            elif "program" in request:
                why = code_why(request["program"], request["tests"], request["seconds"])
            else:
                same = within(1, math_equal, request["answer"], request["gold"], request["meta"])
                why = "right" if same else "wrong"
        except (Stopped, TimeoutError) as stopped:
            why = str(stopped) if isinstance(stopped, Stopped) else "timeout"
        except Exception as error:  # whatever it is, the parent counts it as a verdict of its own
            print(f"verify: {type(error).__name__}: {error}"[:300], file=sys.stderr)
            why = "error"
        print(why, file=out, flush=True)


def within(seconds: float, function, *args):
    """`function(*args)`. Main thread only. Raises Stopped after `seconds` of CPU time."""

    def stop(*_):
        raise Stopped("timeout")

    handler = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        return function(*args)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)


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
        missing = f"there is no function {function!r} in {module}"
        raise UserError(f"--verifier {name}: {missing}; write module:function")
    return found


class Worker:
    """One worker process, its pipes, and the task that it is at."""

    def __init__(self, custom: str | None):
        # A process of its own session: Ctrl-C reaches the trainer alone, which then ends its workers. A plain
        # new interpreter, neither fork (unsafe beside CUDA) nor multiprocessing's spawn (imports the
        # trainer's script again).
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

    def __init__(
        self,
        workers: int = 2,
        time_limit: float = 3.0,
        custom: str | None = None,
        code_seconds: int = CODE_SECONDS,
    ):
        """`workers` processes, `time_limit` seconds for each completion, `custom` = "module:function" in
        place of the built-in verifiers, `code_seconds` of CPU time for a program: whole ones, and twice that
        of wall time. Raises UserError if `custom` cannot be imported or `workers` is below 1."""
        if custom is not None:
            load_function(custom)
        if workers < 1:
            raise UserError(f"--workers {workers}: the verifier needs at least 1")
        self.n_workers, self.time_limit, self.custom = workers, time_limit, custom
        self.code_seconds = code_seconds
        self.workers: list[Worker] = []

    def score(self, completions: list[str], problems: list[Problem]) -> list[Verdict]:
        """One verdict per completion, in order. Never raises for a bad completion."""
        counts = f"{len(completions)} completions for {len(problems)} problems"
        assert len(completions) == len(problems), counts
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
                gold, meta = problem.answer, problem.meta
                verdicts[i] = NO_ANSWER if answer is None else quick_verdict(answer, gold, meta)
                tolerance = {key: meta[key] for key in ("rel_tol", "abs_tol", "unit") if key in meta}
                request = {"answer": answer, "gold": gold, "meta": tolerance}
            elif problem.domain == "code":
                if "tests" not in problem.meta:
                    wanted = "{type: assert, code} or {type: stdio, cases}"
                    raise UserError(f"problem {problem.id} has no tests: {wanted}")
                program = last_program(completion)
                verdicts[i] = NO_ANSWER if program is None else None
                tests = problem.meta["tests"]
                request = {"program": program, "tests": tests, "seconds": self.code_seconds}
                report_sandbox()
            else:
                domain = repr(problem.domain)
                raise UserError(f"problem {problem.id}: there is no verifier for the domain {domain} yet")
            if verdicts[i] is None:
                requests.setdefault(json.dumps(request), []).append(i)
        if requests:
            self._ask_workers(requests, verdicts)
        return verdicts

    def score_groups(self, groups: list[list], problems: list[Problem]) -> list[list[Verdict]]:
        """Verdicts of groups of samples, which have a `text`, one group for each problem."""
        texts = [sample.text for group in groups for sample in group]
        of_texts = [problem for problem, group in zip(problems, groups, strict=True) for _ in group]
        verdicts = iter(self.score(texts, of_texts))
        return [[next(verdicts) for _ in group] for group in groups]

    def _ask_workers(self, requests: dict[str, list[int]], verdicts) -> None:
        """Fills `verdicts` at the rows of each request."""
        tasks = deque((json.loads(request), tuple(rows)) for request, rows in requests.items())
        missing = min(self.n_workers, len(tasks)) - len(self.workers)
        self.workers += [Worker(self.custom) for _ in range(missing)]
        selector = selectors.DefaultSelector()
        for worker in self.workers:
            selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        deaths = 0  # of workers that had no task: the installation is at fault, not a completion
        while tasks or any(worker.task for worker in self.workers):
            for worker in self.workers:
                if worker.ready and worker.task is None and tasks:
                    request, rows = tasks.popleft()
                    try:
                        worker.send(rows, request, self._seconds(request))
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
                    self._settle(worker, VERDICTS.get(line, ERROR), verdicts)
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
                command = f"python verify.py --worker {self.custom or ''}"
                raise UserError(f"verifier workers do not start: `{command}` says why")
        selector.close()

    def _seconds(self, request: dict) -> float:
        if "program" in request:
            return 2 * request["seconds"] + 3
        return min(MATH_SECONDS, self.time_limit) if "gold" in request else self.time_limit

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
    """A completion that must verify: a reference trace, a reference program, or the answer in a box."""
    if problem.domain == "code":
        return f"```python\n{problem.answer}\n```"
    return problem.solution if problem.domain == "countdown" else f"\\boxed{{{problem.answer}}}"


def check_golds(problems: list[Problem], verifier: Verifier) -> list[Problem]:
    """The problems whose reference answer verifies against itself; the others are named on standard error.

    Raises UserError if more than 1 % fail: training on rewards that cannot be earned teaches nothing. A
    verifier of the user's own is not checked, since only it knows what a right completion looks like.
    """
    if verifier.custom is not None:
        return problems
    verdicts = verifier.score([gold_completion(p) for p in problems], problems)
    failed = [(p.id, v.why) for p, v in zip(problems, verdicts) if not v.correct]
    if failed:
        named = ", ".join(f"{id} ({why})" for id, why in failed[:20])
        counts = f"{len(failed)} of {len(problems)}"
        message = f"{counts} reference answers do not verify against themselves: {named}"
        if len(failed) > 0.01 * len(problems):
            remedy = "mend the answers, or bring a verifier of your own with --verifier module:function"
            raise UserError(f"{message}: {remedy}")
        print(f"{message}: left out", file=sys.stderr)
    bad = {id for id, _ in failed}
    return [p for p in problems if p.id not in bad]


def run_cases(path: str, verifier: Verifier, require: float) -> bool:
    """Labelled cases: prints accuracy, false positives and negatives by kind; whether `require` is reached.

    Rows have prediction, gold, correct; or completion, tests, correct; or pieces ([[text, repeat]]), gold,
    correct. Raises UserError for other rows.
    """
    rows = read_file(Path(path))
    completions, problems = [], []
    for number, row in enumerate(rows):
        try:
            text = "".join(piece * times for piece, times in row["pieces"]) if "pieces" in row else None
            completions.append(text or row.get("prediction", row.get("completion")))
            domain, meta = ("code", {"tests": row["tests"]}) if "tests" in row else ("math", {})
            problems.append(Problem(str(number), "", row.get("gold", ""), domain, meta=meta))
            row["correct"], completions[-1].strip
        except (KeyError, TypeError, ValueError, AttributeError):
            needs = "prediction, completion or pieces; gold or tests; correct"
            raise UserError(f"{path}, row {number}: needs {needs}") from None
    start = time.monotonic()
    verdicts = verifier.score(completions, problems)
    seconds = time.monotonic() - start
    table: dict[str, Counter] = {}
    for row, verdict in zip(rows, verdicts):
        false = "false positive" if verdict.correct else "false negative"
        kind = "right" if verdict.correct == row["correct"] else false
        table.setdefault(row.get("kind", "all"), Counter())[kind] += 1
    total = sum(table.values(), Counter())
    for kind, counts in sorted(table.items()):
        if counts["right"] < counts.total():
            positive, negative = counts["false positive"], counts["false negative"]
            found = f"{positive:>4} false positives{negative:>4} false negatives"
            print(f"{kind:<28}{found}  of {counts.total()}")
    accuracy = total["right"] / len(rows)
    positive, negative = total["false positive"], total["false negative"]
    print(f"accuracy {accuracy:.4f}, {positive} false positives, {negative} false negatives of {len(rows)}; "
          f"{seconds:.1f} s; verdicts {dict(Counter(v.why for v in verdicts))}")
    return accuracy >= require


@dataclass
class Args:
    answer: str = ""  # the reference answer
    completion: str = ""  # with its answer in \boxed{}
    data: str = ""  # problems whose reference answers to check against themselves
    split: str = "train"  # of --data, if that is a hub id or an embedded task
    cases: str = ""  # a file of labelled cases
    require: float = 0.0  # the accuracy on --cases below which the exit code is 1
    workers: int = 2  # verifier processes


def main() -> None:
    import tyro  # slow to import

    args = tyro.cli(Args, description=__doc__)
    with Verifier(args.workers) as verifier:
        if args.cases:
            sys.exit(0 if run_cases(args.cases, verifier, args.require) else 1)
        elif args.data:
            problems = load(args.data, args.split)
            verdicts = verifier.score([gold_completion(p) for p in problems], problems)
            print(f"{'reference answers':<20}{'rows':>6}" + "".join(f"{why:>11}" for why in WHY))
            for domain in sorted({p.domain for p in problems}):
                counts = Counter(v.why for p, v in zip(problems, verdicts) if p.domain == domain)
                print(f"{domain:<20}{counts.total():>6}" + "".join(f"{counts[why]:>11}" for why in WHY))
            kept = check_golds(problems, verifier)
            print(f"{args.data}: {len(kept)} of {len(problems)} reference answers verify against themselves")
        elif args.answer and args.completion:
            verdict = verifier.score([args.completion], [Problem("cli", "", args.answer)])[0]
            print(verdict.why)
            sys.exit(0 if verdict.correct else 1)
        else:
            raise UserError("give --answer and --completion, or --data, or --cases")


if __name__ == "__main__":
    try:
        if sys.argv[1:2] == ["--worker"]:
            work()
        else:
            main()
    except UserError as error:
        sys.exit(f"error: {error}")
