"""A test of a program, run here: which of its names are the program's, what is a check, what is called."""

import ast
import builtins
import copy
import importlib
import inspect
import re
import signal
import symtable
import sys
import types
import typing
import unittest
from contextlib import contextmanager, nullcontext, suppress

from machinery import inside
from machinery.remote import Remote


class Stopped(BaseException):
    """It is settled: "timeout" or "wrong". No `except Exception` of a test catches it."""


class Constant:
    """What takes the place of a Program whose functions all return the same value, or raise it."""

    def __init__(self, value):
        self.value, self.results, self.checks = value, 0, 0

    def ask(self, *request):
        called = len(request) == 3
        self.results += called
        if called and isinstance(self.value, Exception):
            self.check()
            raise self.value
        return copy.copy(self.value) if called else Remote(self, len(inside.FUNCTIONS))

    def check(self) -> None:
        self.checks += self.results > 0


def with_check(code: str, entry: str) -> str:
    """The tests of HumanEval's form, check(candidate), with its call, if they lack it."""
    if entry and "def check(" in code and not re.search(r"^check\(", code, re.MULTILINE):
        return f"{code}\ncheck({entry})\n"
    return code


class Checks(ast.NodeTransformer):
    """Behind each check a call says that it took place: `assert`, a call of `assert..`, `if ..: raise`."""

    def visit(self, node):
        self.generic_visit(node)
        found = isinstance(node, ast.Assert)
        if isinstance(node, ast.If):
            found = any(isinstance(inner, ast.Raise) for inner in [*node.body, *node.orelse])
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            found = ast.unparse(node.value.func).rpartition(".")[2].startswith("assert")
        return [node, *ast.parse("__check__()").body] if found else node


# ---- names -------------------------------------------------------------------------------------------------

def names_to_find(code: str, entry: str, here: dict) -> tuple[set[str], set[str]]:
    """What the tests use and neither define nor have `here`: names of the program, and modules of Python's
    that they do not import (MBPP does not import `math`).

    What built-ins and `typing` call so too stays Python's, or a program could replace what judges its
    results. It is the program's as entry point, or if the tests call nothing else that could be.
    """
    free, called, bare, bases = free_names(code), set(), set(), set()
    for node in ast.walk(ast.parse(code)):  # what is above comes first
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called.add(node.func.id)
        if isinstance(node, ast.Attribute):
            bases.add(node.value)
        if isinstance(node, ast.Name) and node not in bases:
            bare.add(node.id)
    types_known = {name for name in typing.__all__ if here.get(name) is getattr(typing, name)}
    known = types_known | set(dir(builtins))
    free -= here.keys() - known
    modules = (free & sys.stdlib_module_names) - bare - {entry}  # a module is not called, nor passed on
    own = free - known - modules
    if not own and not entry:
        own = called & free & types_known or called & free & known
        own = own if len(own) == 1 else set()
    return own | (free & {entry}), modules


def free_names(code: str) -> set[str]:
    """The names that some code reads and does not define."""
    tables, read, bound = [symtable.symtable(code, "tests", "exec")], set(), set()
    for table in tables:
        tables += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_global() and (symbol.is_assigned() or symbol.is_imported()):
                bound.add(symbol.get_name())
            elif symbol.is_global():
                read.add(symbol.get_name())
    return read - bound


# ---- runs --------------------------------------------------------------------------------------------------

def passes(program, tests: dict, seconds: int) -> bool:
    """Whether the tests pass and at least one has checked a result of the program. Raises Stopped.

    They run here: the code, then its test functions and classes. Names not defined are the program's."""
    entry = tests.get("entry_point", "")
    code = with_check(tests["code"], entry)
    here = {"__name__": "tests"}
    exec("from typing import *", here)
    exec(tests.get("setup", ""), here)
    here.pop(entry, None)
    own, modules = names_to_find(code, entry, here)
    checked = ast.fix_missing_locations(Checks().visit(ast.parse(code)))
    here |= {name: importlib.import_module(name) for name in modules}
    here["__check__"] = program.check
    module = Remote(program, 0)
    try:
        with time_limit(2 * seconds):
            for name in sorted(own):
                with suppress(AttributeError) if name in here or hasattr(builtins, name) else nullcontext():
                    here[name] = getattr(module, name)
            with may_exit():
                exec(compile(checked, "tests", "exec"), here)
            with may_exit():
                run_tests(here)
    except Exception:  # a failed assertion, or an answer that the test can do nothing with
        return False
    return program.checks > 0


@contextmanager
def time_limit(seconds: int):
    """Of wall time for the tests, which may be long in a loop over what the program has answered."""
    def stop(*_):
        raise Stopped("timeout")

    usual = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)


@contextmanager
def may_exit():
    """Tests may end in sys.exit(0) or unittest.main(), whose tests `run_tests` runs."""
    usual, unittest.main = unittest.main, lambda *args, **keywords: None
    try:
        yield
    except SystemExit as ended:
        assert ended.code in (None, 0), "a test has exited"
    finally:
        unittest.main = usual


def run_tests(here: dict) -> None:
    """The functions and classes of tests among these names; what has arguments is no test."""
    for name, value in list(here.items()):
        own = getattr(value, "__module__", "") == "tests"
        if own and isinstance(value, type) and issubclass(value, unittest.TestCase):
            for test in unittest.defaultTestLoader.loadTestsFromTestCase(value):
                with suppress(unittest.SkipTest):
                    unittest.TestSuite([test]).debug()
        elif own and isinstance(value, type) and name.startswith("Test"):
            run_methods(value)
        elif own and isinstance(value, types.FunctionType) and name.startswith("test"):
            if value.__code__.co_argcount == 0:
                value()


def run_methods(of: type) -> None:
    """The tests of a class as pytest has them: each of an instance of its own."""
    for name in dir(of):
        if name.startswith("test"):
            test = of()
            if not inspect.signature(getattr(test, name)).parameters:
                getattr(test, "setup_method", lambda: None)()
                getattr(test, name)()
                getattr(test, "teardown_method", lambda: None)()
