"""A program that is not ours: it answers from a sandbox, and the tests stay outside.

    judge([("python", "def f(x): return x")], {"type": "assert", "code": "assert f(1) == 1"}, "root")  # right

machinery/inside.py is what runs in the sandbox. No expected value and no verdict ever enters it: assertions
run here (machinery/checks.py), and a name that they use and do not define stands for the program's. For
machinery/workers.py: what a program leaves behind becomes a child of the worker, its subreaper, which ends
all its children.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import numpy as np

from machinery import checks, inside
from machinery.checks import Stopped
from machinery.fences import last_program
from machinery.remote import Remote

CODE_SECONDS = 5  # of CPU time for one program with all its tests, and twice that of wall time
NOTHING = "def __getattr__(name):\n    return lambda *args, **keywords: object()\n"  # every name, no result
NO_RESULTS = [inside.FUNCTIONS.index(name) for name in ("setattr", "bool", "isinstance")]
INSIDE = Path(inside.__file__).read_text()
ENVIRONMENT = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/", "LANG": "C.UTF-8"}
ENVIRONMENT |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

# ---- isolation ---------------------------------------------------------------------------------------------

SYSTEM = ["/usr", "/lib", "/lib64", "/bin", "/sbin", sys.base_prefix, sys.prefix]
FOLDERS = [f for f in dict.fromkeys(SYSTEM) if os.path.isdir(f) and not f.startswith("/usr/")]
DEVICES = ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"]
MOUNTS = ["/proc proc none rbind", *(f"{device} .{device} none bind" for device in DEVICES)]
MOUNTS += ["{0} .{0} none rbind,ro,nosuid,nodev".format(folder.replace(" ", r"\040")) for folder in FOLDERS]
# A root folder in memory with the system's and Python's folders, read-only; then process numbers of its own,
# the first of which is a shell's: the program cannot end it, and nothing outlives it.
JAIL = rf"""set -e
mount -t tmpfs -o size=64m,mode=777 none .
cd "$PWD"
mkdir -p dev proc {shlex.join(f".{folder}" for folder in FOLDERS)}
for device in {" ".join(DEVICES)}; do : > .$device; done
printf '%s\n' {shlex.join(MOUNTS)} > mounts
mount --all --fstab mounts
exec unshare --pid --fork --kill-child --root=. --wd=/ --mount-proc \
    sh -c 'unset PWD OLDPWD; "$@"; exit' sh "$@"
"""
MODES = {"root": "namespaces", "user": "namespaces", "nobody": "another user, no namespaces (docs/verify.md)"}


def nobody() -> int:
    """An id of systemd's range for such users; each worker has its own: no program can signal another's."""
    return 61_184 + os.getpid() % 4_336


def isolated(mode: str) -> list[str]:
    """What runs a command in isolation. root: in namespaces, as nobody; user: in namespaces that any user may
    make, as their root without rights; nobody: as nobody, without namespaces."""
    drop = ["setpriv", "--no-new-privs", "--pdeathsig=KILL"]  # dies with its parent
    if mode == "user":
        drop += ["--bounding-set=-all", "--inh-caps=-all"]
    else:
        drop += ["--clear-groups", f"--reuid={nobody()}", f"--regid={nobody()}"]
    if mode == "nobody":
        return drop
    spaces = ["--mount", "--net", "--ipc", *(["--user", "--map-root-user"] if mode == "user" else [])]
    return ["setpriv", "--pdeathsig=KILL", "unshare", *spaces, "sh", "-c", JAIL, "sh", *drop]


def best_mode() -> str:
    """The first mode that works here; "none": a program could read all files and end the trainer."""
    program = [("python", "import json; print(input(), json.__file__)")]
    cases = [{"input": 1, "output": f"1 {json.__file__}"}]  # from this Python, which is closed to some users
    for mode in ("root", "user", "nobody") if os.getuid() == 0 else ("user",):
        with suppress(OSError):  # no such command
            if judge(program, {"type": "stdio", "cases": cases}, mode) == "right":
                return mode
    return "none"


class Program(AbstractContextManager):
    """A running program in its sandbox. Use as a context; leaving it removes all its processes and files."""

    def __init__(self, source: str, kind: str, mode: str, seconds: int):
        self.start, self.seconds = time.monotonic(), seconds
        self.remotes, self.exceptions = {}, {}  # by number, by name
        self.results = self.checks = 0  # what it has answered, and the checks after the first answer
        self.folder = tempfile.TemporaryDirectory(prefix="verify-", ignore_cleanup_errors=True)
        if mode == "nobody":
            os.chown(self.folder.name, nobody(), nobody())
        self.process = subprocess.Popen(
            [*isolated(mode), sys.executable, "-I", "-c", INSIDE, kind, str(seconds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd=self.folder.name, env=ENVIRONMENT, start_new_session=True,
        )  # fmt: skip
        self.timer = threading.Timer(2 * seconds, self.end)
        self.timer.start()
        self.send(source)

    def __exit__(self, *_):
        self.timer.cancel()
        self.end()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(BrokenPipeError):
                pipe.close()
        self.folder.cleanup()

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        while orphans := Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            for orphan in map(int, orphans):
                with suppress(ProcessLookupError, ChildProcessError):
                    os.kill(orphan, signal.SIGKILL)
                    os.waitpid(orphan, 0)

    def send(self, line) -> None:
        with suppress(OSError):  # it has ended, and will be found not to answer
            self.process.stdin.write(json.dumps(line).encode() + b"\n")
            self.process.stdin.flush()

    def ask(self, *request):
        """The program's answer to a request of machinery/inside.py. Raises what it raised, or Stopped."""
        # Of what is not plain only what came from the program can go back.
        self.send(inside.encode(list(request), lambda remote: remote._number))
        try:
            reply = json.loads(self.process.stdout.readline(2**22))
            value = inside.decode(reply.get("value"), self.remote, self.exception)
            error = self.error(reply["raised"], *value) if "raised" in reply else None
        except Exception:  # not what `answer` writes
            raise self.killed() from None
        if error and request[0] == 0:
            raise error  # it has no such name: that is no result
        if request[0] not in NO_RESULTS:
            self.results += len(request) == 3 or not isinstance(value, Remote)  # of a call, or a plain value
        if error is None:
            return value
        self.check()  # `try: f(-1)`, then `except ValueError: pass`
        raise error

    def remote(self, number: int) -> Remote:
        """The same one for the same object: so that `is`, `==` of an enum's members, and `in` work."""
        return self.remotes.setdefault(number, Remote(self, number))

    def error(self, names: list[str], arguments: list, attributes: dict) -> Exception:
        """What the program has raised, without __init__, which may want other arguments."""
        kind = self.exception(None, names)
        if issubclass(kind, (StopIteration, StopAsyncIteration)):  # would end `all(map(f, ..))` of the tests
            kind = RuntimeError  # as of a generator, PEP 479
        error = kind.__new__(kind, *arguments)
        error.args = tuple(arguments)
        vars(error).update(attributes)
        return error

    def exception(self, number: int | None, names: list[str]) -> type:
        """The class of exceptions of the first of these names, which are of its ancestors: Python's, if it
        is loaded here, or one that stands for the program's."""
        name, *above = names
        known = inside.named(name)
        if isinstance(known, type) and issubclass(known, Exception) and known is not unittest.SkipTest:
            return known
        if name not in self.exceptions:
            self.exceptions[name] = type(name.rpartition(".")[2], (self.exception(None, above),), {})
        if number is not None:
            self.exceptions[name]._number = number
        return self.exceptions[name]

    def killed(self) -> Stopped:  # most often by the kernel, for its CPU time
        return Stopped("timeout" if time.monotonic() - self.start > self.seconds else "wrong")

    def check(self) -> None:
        """A check of the tests has taken place: it counts if there is a result that it can have been of."""
        self.checks += self.results > 0


# ---- tests -------------------------------------------------------------------------------------------------

def as_text(value) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def stdio_right(source: str, tests: dict, mode: str, seconds: int) -> bool:
    """Whether the program prints each case's output, by line without trailing blanks. Raises Stopped."""
    def lines(text: str) -> list[str]:
        return [line.rstrip() for line in text.rstrip().splitlines()]

    with Program(source, "stdio", mode, seconds) as program:
        for case in tests["cases"]:
            code, printed = program.ask(as_text(case["input"]))
            if code != 0:
                raise program.killed()
            if lines(printed) != lines(as_text(case["output"])):
                return False
    return len(tests["cases"]) > 0


def assert_right(source: str, tests: dict, mode: str, seconds: int) -> bool:
    with Program(source, "assert", mode, seconds) as program:
        return checks.passes(program, tests, seconds)


def constant_passes(tests: dict, seconds: int) -> bool:
    """Whether a program passes all of whose functions return the same value, or raise: none need run."""
    for value in (None, True, 0, [], float("nan"), np.array([]), RuntimeError()):
        with suppress(Stopped):
            if tests["type"] == "assert" and checks.passes(checks.Constant(value), tests, seconds):
                return True
    return False


def judge(blocks: list[tuple[str, str]], tests: dict, mode: str, seconds: int = CODE_SECONDS) -> str:
    """right, wrong or timeout for the program in these blocks.

    Tests: {"type": "assert", "code"} or {"type": "stdio", "cases": [{"input", "output"}]}. The program may
    take `seconds` of CPU time, whole ones, and twice that of wall time. Raises what ill-formed tests raise.
    """
    try:
        right = {"stdio": stdio_right, "assert": assert_right}[tests["type"]]
        return "right" if right(last_program(blocks), tests, mode, seconds) else "wrong"
    except Stopped as stopped:
        return str(stopped)
