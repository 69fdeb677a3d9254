"""A program that is not ours: it answers from a sandbox, and the tests stay outside.

    code_why(program, {"type": "assert", "code": "assert f(1) == 2"})       # "right", "wrong" or "timeout"

`child` and what it calls run inside the sandbox, as the text CHILD: they know nothing else of this file. The
rest is for a worker process of verify.py. Needs the standard library alone: the file is a script as well.
"""

import ast
import builtins
import collections
import ctypes
import glob
import importlib
import inspect
import itertools
import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache

CODE_SECONDS = 5  # of CPU time for one program with all its tests, and twice that of wall time


class Stopped(BaseException):
    """The answer is settled: "timeout" or "wrong".

    No `except Exception` of a library or of a test catches it.
    """


# ---- inside ------------------------------------------------------------------------------------------------

def encode(value, number):
    """A result as JSON: plain values as they are, other built-in ones with a type, the rest by `number`."""
    if value is None or isinstance(value, (bool, float, str)):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, int):
        return {"int": hex(value)}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, list):
        return [encode(item, number) for item in value]
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encode(item, number) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(k, number), encode(v, number)] for k, v in value.items()]}
    if isinstance(value, collections.deque):
        return {"deque": [encode(item, number) for item in value]}
    if hasattr(value, "__next__"):  # a generator, a map ..; it may be endless
        return {"iter": [encode(item, number) for item in itertools.islice(value, 10_000)]}
    return {"object": number(value)}


def decode(value, make_object):
    """The inverse of `encode`; `make_object` of a number stands for what is not built in."""
    if isinstance(value, list):
        return [decode(item, make_object) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "int":
        return int(content, 16)
    if kind == "complex":
        return complex(*content)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "object":
        return make_object(content)
    items = [decode(item, make_object) for item in content]
    builders = {"tuple": tuple, "set": set, "frozenset": frozenset, "dict": dict, "iter": iter}
    builders["deque"] = collections.deque
    return builders[kind](items)


def jail(folders: list[str]) -> None:
    """In fresh namespaces: a root folder in memory with only these folders, read-only, and then no rights."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name, *args):
        if getattr(libc, name)(*(a.encode() if isinstance(a, str) else a for a in args)) < 0:
            raise OSError(ctypes.get_errno(), name)

    bind, detach, read_only = 4096 | 16384, 2, (ctypes.c_uint64 * 4)(1)
    new = os.getcwd()
    call("mount", "none", new, "tmpfs", 6, "size=64m,mode=777")
    os.chdir(new)  # into what is mounted now
    for folder in folders:
        inside = new + folder
        if os.path.islink(folder):
            os.makedirs(os.path.dirname(inside), exist_ok=True)
            os.symlink(os.readlink(folder), inside)
        elif os.path.isdir(folder):
            os.makedirs(inside, exist_ok=True)
            call("mount", folder, inside, None, bind, None)
            # mount_setattr, with what is mounted in it
            call("syscall", 442, -100, inside, 0x8000, read_only, 32)
    os.mkdir("old")
    call("syscall", 155, ".", "old")  # pivot_root
    os.chdir("/")
    call("umount2", "old", detach)
    os.rmdir("old")
    # Of the real root: its limits would bind no one.
    if open("/proc/self/uid_map").read().split() == ["0", "0", "4294967295"]:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        call("prctl", 1, 9, 0, 0, 0)  # again, since setuid undoes it: dies with its parent
    else:
        call("prctl", 28, 0x2F, 0, 0, 0)  # no rights for a user 0 ..
        none = (ctypes.c_uint32 * 6)()
        call("syscall", 126, (ctypes.c_uint32 * 2)(0x20080522, 0), none)  # .. and none kept
    call("prctl", 38, 1, 0, 0, 0)  # no new ones


def child(jailed: bool, stdio: bool, folders: list[str], processes: int, seconds: int) -> None:
    """What the sandbox runs: the program as a script, or as a module whose names can be asked for."""
    with open("program.py", encoding="utf-8") as file:
        source = file.read()
    requests, replies = None, None
    if not stdio:
        requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
    if jailed:
        jail(folders)
    limits = {"AS": 2**30, "FSIZE": 2**20, "NOFILE": 64, "CORE": 0, "CPU": seconds, "NPROC": processes}
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    sys.argv = ["program.py"]
    namespace = {"__name__": "__main__" if stdio else "program"}
    exec(compile(source, "program.py", "exec"), namespace)
    if stdio:
        return
    objects = []

    def number(value):
        objects.append(value)
        return len(objects) - 1

    for line in requests:
        request = json.loads(line)
        try:
            if request["do"] == "name":
                result = namespace[request["name"]]
            elif request["do"] == "attribute":
                result = getattr(objects[request["object"]], request["name"])
            else:
                args, kwargs = decode(request["args"], objects.__getitem__)
                result = objects[request["object"]](*args, **kwargs)
            reply = {"value": encode(result, number)}
        except Exception as error:
            reply = {"raised": type(error).__name__}
        print(json.dumps(reply), file=replies, flush=True)


CHILD = "\n".join([
    "import collections, ctypes, itertools, json, os, resource, sys",
    "sys.set_int_max_str_digits(0)",
    *(inspect.getsource(function) for function in (encode, decode, jail, child)),
])  # fmt: skip

# ---- outside -----------------------------------------------------------------------------------------------


class Remote:
    """Something of the program that is not a plain value: it can be called and has attributes, but it is
    equal to nothing, because its own == is the program's word."""

    def __init__(self, program, number: int):
        self._program, self._number = program, number

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._program.ask({"do": "attribute", "object": self._number, "name": name})

    def __call__(self, *args, **kwargs):
        # Only what came from the program can go back as it is.
        arguments = encode((args, kwargs), lambda value: value._number)
        return self._program.ask({"do": "call", "object": self._number, "args": arguments})


class Program:
    """A running program in its sandbox. Use as a context; leaving it removes all its processes and files.

    For workers only: to reach what a program has left behind it ends all children of its own process.
    """

    def __init__(self, source: str, mode: str, seconds: int, stdin=None, stdout=None):
        self.folder = tempfile.mkdtemp(prefix="verify-")
        self.start, self.seconds = time.monotonic(), seconds
        self.buffer = b""
        with open(os.path.join(self.folder, "program.py"), "w", encoding="utf-8", errors="replace") as file:
            file.write(source)
        prefix = {"root": [], "user": ["--user", "--map-root-user"]}.get(mode)
        jailed = prefix is not None
        spaces = ["unshare", "--pid", "--net", "--ipc", "--mount", "--mount-proc", "--fork", "--kill-child"]
        folders = ["/usr", "/lib", "/lib64", "/bin", "/dev", "/proc", sys.base_prefix, sys.prefix]
        roots = tuple(f + "/" for f in folders)
        folders = [f for f in dict.fromkeys(folders) if not f.startswith(roots)]
        processes = 64 if jailed else 1024  # without a jail the limit counts everything that the user runs
        call = f"child({jailed}, {stdin is not None}, {folders}, {processes}, {seconds})"
        self.process = subprocess.Popen(
            [*([*spaces, *prefix] if jailed else []), sys.executable, "-I", "-c", f"{CHILD}\n{call}"],
            stdin=stdin or subprocess.PIPE,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            env={"PATH": "/usr/bin:/bin", "HOME": "/", "LANG": "C.UTF-8"}
            | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
            preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL),  # dies with its worker
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        while orphans := children(os.getpid()):  # what left the session comes to its subreaper, the worker
            for pid in orphans:
                with suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
        shutil.rmtree(self.folder, ignore_errors=True)

    def over(self) -> Stopped:
        """Why a program that ended early did so: the kernel ends what has used up its CPU time."""
        return Stopped("timeout" if time.monotonic() - self.start > self.seconds else "wrong")

    def ask(self, request: dict):
        """The program's answer to one request. Raises what it raised, or Stopped."""
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            while b"\n" not in self.buffer:
                left = self.start + 2 * self.seconds - time.monotonic()
                if not select.select([self.process.stdout], [], [], max(0.0, left))[0]:
                    raise Stopped("timeout")
                piece = os.read(self.process.stdout.fileno(), 2**16)
                self.buffer += piece
                if not piece or len(self.buffer) > 2**22:
                    raise self.over()
            line, _, self.buffer = self.buffer.partition(b"\n")
            reply = json.loads(line)
            if "raised" not in reply:
                return decode(reply["value"], lambda number: Remote(self, number))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            raise self.over() from None  # no reply of `child`
        known = getattr(builtins, str(reply["raised"]), None)
        if isinstance(known, type) and issubclass(known, Exception):
            raise known()
        raise RuntimeError(reply["raised"])


def children(parent: int) -> list[int]:
    found = []
    for path in glob.glob("/proc/[0-9]*/stat"):
        with suppress(OSError), open(path) as file:
            pid, _, rest = file.read().partition(" ")
            if int(rest.rpartition(")")[2].split()[1]) == parent:
                found.append(int(pid))
    return found


@cache
def sandbox() -> str:
    """The strongest isolation that works here: "root" or "user", both with namespaces, or "rlimits"."""
    for mode in ("root", "user") if os.getuid() == 0 else ("user",):
        with suppress(OSError, Stopped):  # no unshare, or no rights to it
            cases = [{"input": "1", "output": "1"}]
            if stdio_verdict("import json; print(input())", cases, mode, CODE_SECONDS):
                return mode
    return "rlimits"


def stdio_verdict(source: str, cases: list[dict], mode: str, seconds: int) -> bool:
    """Whether the program prints each case's output, by line without trailing blanks. Raises Stopped."""
    end = time.monotonic() + 2 * seconds
    for case in cases:
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as printed:
            given.write(case["input"].encode())
            given.seek(0)
            with Program(source, mode, seconds, given, printed) as program:
                try:
                    code = program.process.wait(max(0.0, end - time.monotonic()))
                except subprocess.TimeoutExpired:
                    raise Stopped("timeout") from None
                if code != 0:
                    raise program.over()
            printed.seek(0)
            texts = (printed.read().decode(errors="replace"), case["output"])
        said, wanted = ([line.rstrip() for line in text.rstrip().splitlines()] for text in texts)
        if said != wanted:
            return False
    return True


def assert_verdict(source: str, tests: dict, mode: str, seconds: int) -> bool:
    """Whether the tests pass. They run here; names they do not define are the program's. Raises Stopped."""
    here = {"__name__": "tests"}
    exec(tests.get("setup", ""), here)
    here.pop(tests.get("entry_point", ""), None)
    code = ast.parse(tests["code"])
    nodes = list(ast.walk(code))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    used = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    bound |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {(node.asname or node.name).split(".")[0] for node in nodes if isinstance(node, ast.alias)}
    with Program(source, mode, seconds) as program:
        try:
            for name in used - bound - here.keys() - (set(dir(builtins)) - {tests.get("entry_point")}):
                if name in sys.stdlib_module_names:  # MBPP's tests use `math` without an import
                    here[name] = importlib.import_module(name)
                else:
                    here[name] = program.ask({"do": "name", "name": name})
            exec(compile(code, "tests", "exec"), here)
        except Exception:  # a failed assertion, or an answer that the test can do nothing with
            return False
    return True


def code_why(program: str, tests: dict, seconds: int = CODE_SECONDS) -> str:
    """right, wrong or timeout for a program and its tests.

    They are {"type": "assert", "code"} or {"type": "stdio", "cases"}. The program may take `seconds` of CPU
    time, whole ones, and twice that of wall time. Raises what ill-formed tests raise.
    """
    try:
        if tests["type"] == "stdio":
            right = stdio_verdict(program, tests["cases"], sandbox(), seconds)
        else:
            right = assert_verdict(program, tests, sandbox(), seconds)
        return "right" if right else "wrong"
    except Stopped as stopped:
        return str(stopped)


def last_program(completion: str) -> str | None:
    """The last closed fenced block of the last 200 kB."""
    text = completion[-200_000:].replace("\r\n", "\n")
    blocks = re.findall(r"^ *```[^\n`]*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return blocks[-1] if blocks else None


@cache
def report_sandbox() -> None:
    """Says once how programs are kept in. Asks another process: `Program` ends all children of its own."""
    asked = subprocess.run([sys.executable, "-I", os.path.abspath(__file__)], capture_output=True, text=True)
    kind = "namespaces" if asked.stdout.strip() in ("root", "user") else "rlimits only"
    print(f"code sandbox: {kind}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(sandbox())
