"""Processes that judge completions: killed when one takes too long, and replaced at once.

    pool = Pool(2, memory=2.0, custom="")
    pool.ask([(("math", "x+1", "1+x", {}), 1.5)])  # ["right"]

A template process loads what is slow to load and forks the workers: the trainer, which may have threads and
CUDA, never forks, and a new worker costs milliseconds.
"""

import ctypes
import importlib
import json
import os
import pickle
import resource
import select
import shlex
import signal
import socket
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock

import numpy as np

from data import UserError
from machinery import answers, sandbox

ENTRY = str(Path(__file__).resolve().parent.parent / "verify.py")
MATH_CPU_SECONDS = 0.4  # for one comparison; all of some 1500 labelled ones take less than 0.1

# ---- in the processes --------------------------------------------------------------------------------------

def fork_workers(memory: str = "2", custom: str = "") -> None:
    """The template. A message on its standard input, a socket, brings the end of a new worker's own one."""
    if not custom and not answers.math_equal(r"\sin^2 x", r"1-\cos^2 x", {}):  # loads much of sympy
        raise UserError("the installed sympy does not find sin^2 x = 1 - cos^2 x")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # a worker that ends leaves nothing
    orders = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    while descriptors := socket.recv_fds(orders, 1, 1)[1]:
        if os.fork() == 0:
            orders.close()
            work(socket.socket(fileno=descriptors[0]), memory, custom)
            break
        os.close(descriptors[0])
    os._exit(0)


def work(connection: socket.socket, memory: str, custom: str) -> None:
    """A worker. A request is a pickled (what, ...); its reply is a line of JSON: [one of verify.WHY, ""], or
    ["error", traceback], or ["refused", what the user has to mend]."""
    os.setsid()  # it will be killed with all that it has started
    libc = ctypes.CDLL(None)
    libc.prctl(1, signal.SIGKILL)  # dies with its parent
    libc.prctl(36, 1)  # subreaper: what a program leaves behind becomes its child
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sys.set_int_max_str_digits(0)
    function = load_function(custom) if custom else None
    resource.setrlimit(resource.RLIMIT_AS, (int(float(memory) * 2**30),) * 2)
    requests, replies = connection.makefile("rb"), connection.makefile("w")

    pid = os.getpid()

    def reply(why, said: str = "") -> None:
        if os.getpid() != pid:  # a verifier of one's own has forked, and returned here too
            os._exit(0)
        print(json.dumps([why, said]), file=replies, flush=True)

    def expire(*_) -> None:
        reply("timeout")
        os._exit(0)

    signal.signal(signal.SIGPROF, expire)
    reply(pid)
    while requests.peek(1):  # nothing: the trainer has ended
        what, *asked = pickle.load(requests)
        try:
            if what == "math":
                signal.setitimer(signal.ITIMER_PROF, MATH_CPU_SECONDS)
                same = answers.math_equal(*asked)
                signal.setitimer(signal.ITIMER_PROF, 0)
                reply("right" if same else "wrong")
            elif what == "program":
                reply(sandbox.judge(*asked))
            elif what == "constant":
                reply("right" if sandbox.constant_passes(*asked) else "wrong")
            elif what == "sandbox":
                reply(sandbox.best_mode())
            else:
                reply(*meaning(function(*asked), custom))
        except (Exception, SystemExit):  # a verdict of its own, and shown
            signal.setitimer(signal.ITIMER_PROF, 0)
            reply("error", traceback.format_exc()[-3_000:])


def load_function(name: str):
    """The function named "module:function"; the module is looked for in the working folder too."""
    module, _, function = name.partition(":")
    if not (module and function) or module.startswith("."):
        raise UserError(f"--verifier {name}: write module:function")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function, None)
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split())
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            where = f"run from the folder that holds {module}.py"
            raise UserError(f"--verifier {name}: {said}; {where}") from None
        raised = f"{type(error).__name__}: {said}" if said else type(error).__name__
        raise UserError(f"--verifier {name}: importing {module} raised {raised}") from None
    if not callable(found):
        missing = f"there is no function {function!r} in {module}"
        raise UserError(f"--verifier {name}: {missing}; write module:function")
    return found


def meaning(value, custom: str) -> tuple[str, str]:
    """The reply for what a verifier has returned: True or 1, False or 0, of Python or numpy."""
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, bool | int | float) and plain in (0, 1):
        return ("right" if plain else "wrong"), ""
    return "refused", f"--verifier {custom} returned {repr(value)[:100]}: return True or False, 1 or 0"


# ---- in the trainer ----------------------------------------------------------------------------------------

class Worker:
    """A process that answers one request after the other, and its successors when it has to be killed."""

    def __init__(self, pool):
        self.pool, self.pid = pool, 0

    def start(self) -> None:
        for _ in range(2):
            with suppress(OSError, ValueError):  # it ended before it was ready
                self.socket = self.pool.fork()
                self.socket.settimeout(120)  # on a busy machine libraries load slowly
                self.replies = self.socket.makefile()
                self.pid, _ = json.loads(self.replies.readline())
                return
        raise UserError(f"verifier workers do not start: `{shlex.join(self.pool.command)}` says why")

    def ask(self, request: tuple, seconds: float) -> tuple[str, str]:
        """Its reply; timeout after `seconds`, error if it dies. Raises UserError if it refuses."""
        if not self.alive():
            self.start()
        self.socket.settimeout(seconds)
        why, said = "error", ""
        try:
            self.socket.sendall(pickle.dumps(request))
            why, said = json.loads(self.replies.readline())
        except TimeoutError:
            why = "timeout"
        except (OSError, ValueError):  # the end of the file, at once or within the reply
            self.kill()
        if why == "timeout":
            self.kill()
        if why == "refused":
            raise UserError(said)
        return why, said

    def alive(self) -> bool:
        """Not so if the kernel has taken it since its last reply, as it does when memory is short."""
        if not self.pid:
            return False
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)  # there is nothing to read but the end of the file
        return not poll.poll(0)

    def kill(self) -> None:
        if self.pid:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.replies.close()
            self.socket.close()
        self.pid = 0


class Pool:
    """`size` workers of at most `memory` GB each, started when they are needed."""

    def __init__(self, size: int, memory: float, custom: str):
        self.size, self.custom = size, custom
        self.command = [sys.executable, ENTRY, "--worker", str(memory), *([custom] if custom else [])]
        self.workers: list[Worker] = []
        self.template: subprocess.Popen | None = None
        self.lock = Lock()
        self.shown = False  # an error

    def ask(self, tasks: list[tuple[tuple, float]]) -> list[str]:
        """One of verify.WHY for each (request, seconds). Raises UserError if none starts or one refuses."""
        replies: list = [None] * len(tasks)
        left = iter(enumerate(tasks))
        while len(self.workers) < min(self.size, len(tasks)):
            self.workers.append(Worker(self))

        def serve(worker: Worker) -> None:
            for number, task in left:
                replies[number] = worker.ask(*task)

        with ThreadPoolExecutor(self.size) as threads:
            try:
                list(threads.map(serve, self.workers))
            except BaseException:  # Ctrl-C, or a UserError: nothing is left for the other threads
                list(left)
                raise
        for _, said in replies:
            if said and not self.shown:
                print(f"verify: this error is counted, and not shown again:\n{said}", file=sys.stderr)
                self.shown = True
        return [why for why, _ in replies]

    def fork(self) -> socket.socket:
        """The trainer's end of a socket to a new worker."""
        with self.lock:
            if self.template is None or self.template.poll() is not None:
                self.orders, theirs = socket.socketpair()
                with theirs:
                    output = 2 if self.custom else subprocess.DEVNULL  # to standard error
                    # In a session of its own: Ctrl-C reaches the trainer alone.
                    self.template = subprocess.Popen(
                        self.command, stdin=theirs, stdout=output, stderr=output, start_new_session=True
                    )
            ours, theirs = socket.socketpair()
            with theirs:
                socket.send_fds(self.orders, [b"+"], [theirs.fileno()])
            return ours

    def close(self) -> None:
        """End the workers. They start again when they are asked."""
        while self.workers:
            self.workers.pop().kill()
        if self.template is not None:
            self.template.kill()
            self.template.wait()
            self.orders.close()
            self.template = None
