"""What runs inside the sandbox: the text of this file, in an interpreter that has nothing else of ours.

Lines of JSON come in and go out: the program, then one request after the other, each with one reply. Results
go out as plain data. `encode` and `decode` are used outside too, for the way of the arguments.
"""

import builtins
import collections.abc
import importlib
import itertools
import json
import operator
import os
import re
import resource
import sys

# ---- values ------------------------------------------------------------------------------------------------

MOST_ITEMS = 1_000_000  # of a range that goes out by value
TYPES = [  # by what name in which module, arguments that make such a value again, and what they are for
    ("builtins.tuple", lambda v: [list(v)], tuple),
    ("collections.Counter", lambda v: [list(map(list, v.items()))], lambda v: collections.Counter(dict(v))),
    ("collections.OrderedDict", lambda v: [list(map(list, v.items()))], "collections.OrderedDict"),
    ("builtins.dict", lambda v: [list(map(list, v.items()))], dict),
    ("builtins.set", lambda v: [list(v)], set),
    ("builtins.frozenset", lambda v: [list(v)], frozenset),
    ("collections.deque", lambda v: [list(v)], "collections.deque"),
    ("builtins.range", lambda v: [v.start, v.stop, v.step], range),
    ("builtins.bytes", lambda v: [v.hex()], bytes.fromhex),
    ("builtins.bytearray", lambda v: [v.hex()], bytearray.fromhex),
    ("collections.abc.KeysView", lambda v: [list(v)], lambda keys: dict.fromkeys(keys).keys()),
    ("collections.abc.ItemsView", lambda v: [list(map(list, v))], lambda items: dict(items).items()),
    ("collections.abc.ValuesView", lambda v: [list(v)], lambda values: dict(enumerate(values)).values()),
    # a generator, a map ..; it may be endless
    ("collections.abc.Iterator", lambda v: [list(itertools.islice(v, 10_000))], iter),
    ("numpy.generic", lambda v: [v.item()], lambda item: item),
    ("numpy.ndarray", lambda v: [v.tolist(), v.dtype.str], "numpy.array"),
    ("builtins.int", lambda v: [hex(v), 16], int),
    ("numbers.Integral", lambda v: [hex(int(v)), 16], int),
    ("numbers.Rational", lambda v: [int(v.numerator), int(v.denominator)], "fractions.Fraction"),
    ("numbers.Real", lambda v: [float(v)], float),
    ("builtins.complex", lambda v: [v.real, v.imag], complex),
    ("decimal.Decimal", lambda v: [str(v)], "decimal.Decimal"),
    ("datetime.datetime", lambda v: [v.isoformat()], "datetime.datetime.fromisoformat"),
    ("datetime.date", lambda v: [v.isoformat()], "datetime.date.fromisoformat"),
    ("datetime.time", lambda v: [v.isoformat()], "datetime.time.fromisoformat"),
    ("datetime.timedelta", lambda v: [v.days, v.seconds, v.microseconds], "datetime.timedelta"),
]


def named(path: str):
    """What stands there, None if the module is not loaded: then no value is of its classes."""
    module, *names = path.split(".")
    found = sys.modules.get(module)
    for name in names:
        found = getattr(found, name, None)
    return found


def ancestors(error: type) -> list[str]:
    """The names of an exception's class and of those above it."""
    classes = [kind for kind in error.__mro__ if issubclass(kind, Exception)]
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in classes]


def encode(value, number):
    """A value as JSON: of a type that JSON lacks as {type: arguments}; what is not plain as its `number`."""
    if value is None or isinstance(value, (bool, float, str)):
        return value
    if isinstance(value, int) and -(2**63) < value < 2**63:
        return value
    if isinstance(value, list):
        return [encode(item, number) for item in value]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {"namedtuple": [list(value._fields), encode(list(value), number)]}
    if isinstance(value, range) and value.stop - value.start > MOST_ITEMS * abs(value.step):
        return {"object": number(value)}  # nobody outside should have to walk through it
    if isinstance(value, type) and issubclass(value, Exception):
        return {"exception": [number(value), ancestors(value)]}
    for path, arguments, _ in TYPES:
        kind = named(path)
        if kind is not None and isinstance(value, kind):
            return {path: encode(arguments(value), number)}
    return {"object": number(value)}


def decode(value, make_object, make_exception=None):
    """The inverse of `encode`; `make_object` of a number stands for what is not plain, `make_exception` of a
    number and `ancestors` for a class of exceptions."""
    if isinstance(value, list):
        return [decode(item, make_object, make_exception) for item in value]
    if not isinstance(value, dict):
        return value
    ((path, arguments),) = value.items()
    if path == "object":
        return make_object(arguments)
    if path == "exception":
        return make_exception(*arguments)
    if path == "namedtuple":
        fields, items = arguments
        return collections.namedtuple("Row", fields)(*decode(items, make_object, make_exception))
    make = next(make for known, _, make in TYPES if known == path)
    if isinstance(make, str):
        importlib.import_module(make.partition(".")[0])
        make = named(make)
    return make(*decode(arguments, make_object, make_exception))


# What can be called like a function of the program: object 1, 2 .. of a request; the module is object 0.
FUNCTIONS = ["module", "setattr", "bool", "len", "str", "repr", "int", "float", "abs", "iter", "isinstance"]
FUNCTIONS += ["neg", "getitem", "setitem", "delitem", "add", "mul", "sub", "truediv", "matmul"]


# ---- the program -------------------------------------------------------------------------------------------

def limit(seconds: int) -> None:
    limits = {"AS": 2**30, "FSIZE": 2**20, "NOFILE": 64, "CORE": 0, "CPU": seconds, "NPROC": 64}
    for name, most in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))


def run(code, name: str):
    """The program as the module of this name."""
    module = sys.modules[name] = type(sys)(name)
    exec(code, vars(module))
    return module


def raised(error: Exception, number) -> dict:
    """An exception as a reply: classes, arguments (the text, if it makes one of its own) and attributes."""
    own_text = hasattr(type(error).__str__, "__code__")
    arguments = [str(error)] if own_text else list(error.args)
    return {"raised": ancestors(type(error)), "value": encode([arguments, vars(error)], number)}


def answer(code, seconds: int, requests, replies) -> None:
    """A request is [object, name of an attribute] or [object, arguments, keywords]; object 0 is the module,
    those behind it are FUNCTIONS.

    The reply is {"value": ..}, or {"raised": its classes, "value": [arguments, attributes]}.
    """
    functions = [getattr(builtins, name, None) or getattr(operator, name) for name in FUNCTIONS[1:]]
    limit(seconds)
    objects = [run(code, "program"), *functions]
    numbers = {}  # by the id of an object, which is kept: the same object has the same number

    def number(value) -> int:
        if id(value) not in numbers:
            numbers[id(value)] = len(objects)
            objects.append(value)
        return numbers[id(value)]

    for line in requests:
        target, what, *keywords = decode(json.loads(line), objects.__getitem__, lambda n, _: objects[n])
        try:
            result = objects[target](*what, **keywords[0]) if keywords else getattr(objects[target], what)
            reply = {"value": encode(result, number)}
        except Exception as error:
            reply = raised(error, number)
        print(json.dumps(reply), file=replies, flush=True)


def run_cases(code, seconds: int, requests, replies, quick: bool) -> None:
    """A request is [standard input] of a fork that runs the program, a reply {"value": [exit code, output]}.

    `quick`: at its end it only has to write what it has printed. An interpreter's usual end costs three times
    as much as all the rest.
    """
    for line in requests:
        given, printed = (open(os.memfd_create(name), "w+b") for name in ("input", "output"))
        with given, printed:
            given.write(json.loads(line)[0].encode(errors="replace"))
            given.seek(0)
            case = os.fork()
            if case == 0:
                os.dup2(given.fileno(), 0)
                os.dup2(printed.fileno(), 1)
                requests.close()
                replies.close()
                limit(seconds)
                run(code, "__main__")
                if quick:
                    sys.stdout.flush()
                    os._exit(0)
                return
            ended, status = os.wait()
            while ended != case:  # what an earlier case has left behind
                ended, status = os.wait()
            printed.seek(0)
            value = [os.waitstatus_to_exitcode(status), printed.read().decode(errors="replace")]
            print(json.dumps({"value": value}), file=replies, flush=True)


if __name__ == "__main__":
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    sys.set_int_max_str_digits(0)
    kind, seconds, sys.argv = sys.argv[1], int(sys.argv[2]), ["program.py"]
    source = json.loads(requests.readline())
    if re.search(r"\b(Any|Callable|Dict|Iterable|Iterator|List|Optional|Sequence|Set|Tuple|Union)\b", source):
        exec("from typing import *", vars(sys.modules["builtins"]))  # LeetCode's programs do not import it
    code = compile(source, "program.py", "exec")
    if kind == "stdio":
        quick = not re.search(r"open(?!\(0\))|\bio\b|atexit|thread|concurrent|multiprocessing", source)
        run_cases(code, seconds, requests, replies, quick)
    else:
        answer(code, seconds, requests, replies)
