"""What stands outside for something in the sandbox that is not plain data: an object, a class, a module."""

from machinery.inside import FUNCTIONS


class Remote:
    """It can be called, has attributes, items, a length and a text: the program is asked for each, and what
    comes back is plain data or another one. It is equal to itself alone, and neither smaller nor larger than
    anything: the program's own == and < would be its word. `in` looks through the items, here.

    One with a value of the tests: + and * only. In `abs(f(x) - 3)` the program would be shown the 3.
    """

    def __init__(self, program, number: int):
        vars(self).update(_program=program, _number=number)

    def _apply(self, function: str, *operands):
        """Python's function of this name, called inside, as FUNCTIONS has it."""
        return self._program.ask(FUNCTIONS.index(function), list(operands), {})

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._program.ask(self._number, name)

    def __setattr__(self, name: str, value):
        self._apply("setattr", self, name, value)

    def __call__(self, *args, **keywords):
        return self._program.ask(self._number, list(args), keywords)

    def __bool__(self):
        return self._apply("bool", self)

    def __len__(self):
        return self._apply("len", self)

    def __str__(self):
        return self._apply("str", self)

    def __repr__(self):
        return self._apply("repr", self)

    def __int__(self):
        return self._apply("int", self)

    def __float__(self):
        return self._apply("float", self)

    def __abs__(self):
        return self._apply("abs", self)

    def __neg__(self):
        return self._apply("neg", self)

    def __iter__(self):
        return iter(self._apply("iter", self))

    def __getitem__(self, key):
        return self._apply("getitem", self, key)

    def __setitem__(self, key, value):
        self._apply("setitem", self, key, value)

    def __delitem__(self, key):
        self._apply("delitem", self, key)

    def __instancecheck__(self, value):
        """isinstance(value, the program's class)"""
        return self._apply("isinstance", value, self)

    def __add__(self, other):
        return self._apply("add", self, other)

    def __radd__(self, other):
        return self._apply("add", other, self)

    def __mul__(self, other):
        return self._apply("mul", self, other)

    def __rmul__(self, other):
        return self._apply("mul", other, self)

    def __sub__(self, other):
        return self._apply("sub", self, other) if isinstance(other, Remote) else NotImplemented

    def __truediv__(self, other):
        return self._apply("truediv", self, other) if isinstance(other, Remote) else NotImplemented

    def __matmul__(self, other):
        return self._apply("matmul", self, other) if isinstance(other, Remote) else NotImplemented
