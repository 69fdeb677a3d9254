r"""A LaTeX formula as a sympy expression, and when two of them are equal.

    read(r"\frac12x^2")                             # x**2/2; None for what is no formula
    equal(read(r"\sqrt{18}"), read("3*sqrt(2)"))    # True

The reader is our own: latex2sympy takes 2(3) for 5 and f'(x) for f(x), and seconds for 18 brackets. All is
exact: decimals become fractions, and irrational numbers must agree to 200 digits more than they are written
with. What may be meant in two ways, or would keep sympy busy for long, is not read.
"""

import random
import re
import sys
from functools import lru_cache

import sympy

from machinery.notation import GREEK

sys.set_int_max_str_digits(0)  # a reference answer may be 2999! or 2^{20000}, in the trainer's process too

TOKEN = re.compile(r"\s*(\d+\.?\d*|\.\d+|\.(?=\\overline)|\\[a-zA-Z]+|[A-Za-z]'*|[-+/^_!(){}\[\]|])")
TRIGONOMETRY = ("sin", "cos", "tan", "cot", "sec", "csc")
INVERSES = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "ln": "log"}  # sympy's names
FUNCTIONS = (*TRIGONOMETRY, *INVERSES, "sinh", "cosh", "tanh", "log", "exp")
CLOSING = {"(": ")", "{": "}", "[": "]", "|": "|", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
WRAPPERS = {"|": sympy.Abs, "\\lfloor": sympy.floor, "\\lceil": sympy.ceiling}
NO_ATOMS = ("\\times", "\\rfloor", "\\rceil", "\\degree")
CONSTANTS = {"i": sympy.I, "e": sympy.E, "\\pi": sympy.pi}
# Limits: of the text, of brackets in brackets, of n!, and of the bits of a number, under a root as well.
MOST_LETTERS, MOST_DEPTH, MOST_FACTORIAL, MOST_BITS, MOST_BITS_OF_ROOT = 400, 30, 3000, 300_000, 1000


class Unreadable(ValueError):
    """No formula, one that may be meant in two ways, or one that is too large."""


class Reader:
    """Recursive descent: a sum of products of factors, which are atoms with powers."""

    def __init__(self, text: str):
        self.tokens, end = [], 0
        while match := TOKEN.match(text, end):
            self.tokens.append(match[1])
            end = match.end()
        if text[end:].strip() or len(text) > MOST_LETTERS:
            raise Unreadable(text)
        self.at = self.depth = self.bars = 0
        self.in_trigonometry = False

    def peek(self) -> str:
        """The next token, "" at the end."""
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, wanted: str = "") -> str:
        token = self.peek()
        if token == "" or (wanted and token != wanted):
            raise Unreadable(f"{token} where {wanted} should be")
        self.at += 1
        return token

    def whole(self):
        value = self.sum()
        if self.peek():
            raise Unreadable(self.peek())
        return value

    def sum(self):
        value = self.product()
        while self.peek() in ("+", "-"):
            value = value + self.product() if self.take() == "+" else value - self.product()
        return value

    def product(self):
        value, divided = self.factor(), False
        while True:
            token = self.peek()
            if token == "\\times":
                self.take()
                value, divided = value * self.factor(), False
            elif token == "/":
                self.take()
                value, divided = quotient(value, self.factor()), True
            elif not self.begins_atom(token):
                return value
            elif divided:
                raise Unreadable("1/2x may be 1/(2x)")
            elif token[0] in ".0123456789" and (self.tokens[self.at - 1] not in "i!)" or token[0] == "0"):
                raise Unreadable("3 4 is no number")
            else:
                value = value * self.factor()

    def begins_atom(self, token: str) -> bool:
        if token == "|":
            return self.bars == 0  # else it closes
        return not (token == "" or token[0] in "+-/^_!)}]" or token in NO_ATOMS)

    def factor(self):
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise Unreadable("too deep")
        if self.peek() in ("+", "-"):
            value = self.factor() if self.take() == "+" else -self.factor()
        else:
            value = self.postfix(self.atom())
        self.depth -= 1
        return value

    def postfix(self, value):
        """Powers, factorials and degrees behind an atom."""
        while self.peek() in ("^", "!", "\\degree"):
            token = self.take()
            if token == "^":
                value = power(value, self.argument())
            elif token == "!":
                value = sympy.factorial(small(value))
            elif self.in_trigonometry:
                value = value * sympy.pi / 180
        return value

    def argument(self, one_digit: bool = False):
        r"""{..}, a letter, a number or a command with its arguments.

        LaTeX takes one digit: \frac12 is 1/2. In a power people mean the whole number.
        """
        token = self.peek()
        if token == "-":
            self.take()
            return -self.argument()
        if token.isdigit():
            if one_digit and len(token) > 1:
                self.tokens[self.at : self.at + 1] = [token[0], token[1:]]
            return sympy.Integer(self.take())
        if re.fullmatch(r"[A-Za-z({]|\\[a-zA-Z]+", token):
            return self.atom()
        raise Unreadable(token)

    def atom(self):
        token = self.take()
        name = token.removeprefix("\\")
        if token[0] in ".0123456789":
            return self.number(token)
        if token in CLOSING:
            self.bars += token == "|"
            value = self.sum()
            self.bars -= token == "|"
            self.take(CLOSING[token])
            return WRAPPERS[token](value) if token in WRAPPERS else value
        if token in CONSTANTS:
            return CONSTANTS[token]
        if token[0].isalpha() or name in GREEK:
            return self.symbol(token)
        if name == "frac":
            return quotient(self.argument(one_digit=True), self.argument(one_digit=True))
        if name == "binom":
            return sympy.binomial(small(self.argument(one_digit=True)), small(self.argument(one_digit=True)))
        if name == "sqrt":
            degree = self.atom() if self.peek() == "[" else sympy.Integer(2)
            value = self.argument(one_digit=True)
            if degree.is_odd and value.is_negative:
                return -power(-value, quotient(1, degree))  # the real root
            return power(value, quotient(1, degree))
        if name in FUNCTIONS:
            return self.function(name)
        raise Unreadable(token)

    def number(self, token: str):
        r"""An integer, decimal, repeating decimal (0.1\overline{6}) or mixed number (2\frac13, 2 1/3)."""
        value = sympy.Rational("0" + token.rstrip("."))
        following = [*self.tokens[self.at : self.at + 3], "", "", ""]
        if "." in token and following[0] == "\\overline" and following[2].isdigit():
            self.at += 3
            self.take("}")
            places, period = len(token.partition(".")[2]), following[2]
            return value + sympy.Rational(int(period), (10 ** len(period) - 1) * 10**places)
        if token.isdigit() and following[0] == "\\frac":
            fraction = self.atom()
            return value + fraction if fraction.is_Rational and fraction > 0 else value * fraction
        if token.isdigit() and following[1] == "/" and following[0].isdigit() and following[2].isdigit():
            self.at += 3
            return value + quotient(sympy.Integer(following[0]), sympy.Integer(following[2]))
        return value

    def symbol(self, token: str):
        """A letter with its index, or f or g of something."""
        if self.peek() == "_":
            self.take()
            start = self.at
            self.argument()
            token += "_" + "".join(self.tokens[start : self.at]).strip("{}")
        if token[0] in "fg" and self.peek() in ("(", "{"):
            return sympy.Function(token)(self.atom())
        return sympy.Symbol(token, real=True)

    def function(self, name: str):
        r"""\sin(x), \sin^2 x, \log_2 5; without brackets the argument ends before the next function."""
        exponent = base = None
        while self.peek() in ("^", "_"):
            if self.take() == "^":
                exponent = self.argument()
            else:
                base = self.argument()
        if exponent == -1 or (base is not None and name != "log"):
            raise Unreadable("sin^{-1} may be 1/sin")
        outside, self.in_trigonometry = self.in_trigonometry, self.in_trigonometry or name in TRIGONOMETRY
        if self.peek() in ("(", "{"):
            value = self.atom()
        else:
            value = self.factor()
            while self.begins_atom(self.peek()) and self.peek() != "(" and self.peek()[1:] not in FUNCTIONS:
                if self.peek()[0] in ".0123456789":
                    raise Unreadable("is ln 2 3 the logarithm of 6?")
                value = value * self.factor()
        self.in_trigonometry = outside
        value = apply(name, value)
        if base is not None:
            value = quotient(value, sympy.log(base))
        return value if exponent is None else power(value, exponent)


def apply(name: str, value):
    """A function of a value, by those of which sympy knows how exact its digits are."""
    if name in ("tan", "cot", "sec", "csc"):
        tops = {"tan": sympy.sin, "cot": sympy.cos}
        bottom = sympy.cos if name in ("tan", "sec") else sympy.sin
        return quotient(tops[name](value) if name in tops else 1, bottom(value))
    applied = getattr(sympy, INVERSES.get(name, name))(value)
    return applied.rewrite(sympy.exp) if name in ("sinh", "cosh", "tanh") else applied


def small(value):
    """`value`, unless n! of it would be large."""
    if value.is_number and not (value.is_Integer and 0 <= value <= MOST_FACTORIAL):
        raise Unreadable("a large factorial")
    return value


def quotient(top, bottom):
    if bottom == 0:
        raise Unreadable("a division by 0")
    return top / bottom


def power(base, exponent):
    root = exponent.is_Rational and not exponent.is_Integer  # sympy looks for factors
    if bits(sympy.Pow(base, exponent, evaluate=False)) > (MOST_BITS_OF_ROOT if root else MOST_BITS):
        raise Unreadable("a large power")
    if base == 0 and not exponent.is_positive:
        raise Unreadable("a division by 0")
    return base**exponent


def bits(expression) -> float:
    """About the length of the number that sympy comes to, at one of `points` where there are symbols."""
    if expression.is_Rational:
        return expression.p.bit_length() + expression.q.bit_length()
    if not expression.args:
        return 3 if expression.is_number else 8
    sizes = [bits(part) for part in expression.args]
    if expression.is_Pow or expression.func in (sympy.exp, sympy.factorial):
        exponent = expression.args[-1]
        largest = float(abs(exponent)) if exponent.is_Rational else 2.0 ** min(sizes[-1], 100)
        return sizes[0] * max(1, largest)
    return max(sizes) + len(sizes) if expression.is_Add else sum(sizes)


@lru_cache(4096)
def read(text: str):
    """The sympy expression; None for what is none, or too large."""
    try:
        value = Reader(text).whole()
    except (Unreadable, ArithmeticError, TypeError, ValueError):  # sympy's words for what has no value
        return None
    return None if value.has(sympy.nan, sympy.zoo, sympy.oo) or bits(value) > MOST_BITS else value


def write(expression) -> str:
    """An expression as `read` reads it."""
    return str(expression) if expression.is_Rational else sympy.latex(expression).replace("\\log", "\\ln")


# ---- equality ----------------------------------------------------------------------------------------------

FACTORS = (1, 11, 400, 29, 1500, 10**6, 2, 97)
STEPS, COUNTS = (sympy.floor, sympy.ceiling), (sympy.factorial, sympy.binomial)
STEEP = (sympy.Pow, sympy.exp, sympy.asin, sympy.acos)  # of large values it is slow to tell digits
WHOLE_NAMES = "ijkmnN"


def symbols_in(parts) -> set:
    return {symbol for part in parts for symbol in part.free_symbols}


def points(a, g) -> list[dict]:
    """Values for the symbols of two expressions, the same in every process.

    Four points are positive; those that follow have all signs of up to three symbols, and each size of
    FACTORS unless that would be slow; the last are whole. What is counted is whole at all points: the n of
    n!, and in a formula with floors what is called n.
    """
    symbols = sorted(a.free_symbols | g.free_symbols, key=lambda symbol: symbol.name)
    if not symbols:
        return [{}]
    exponents = [part.args[-1] for part in a.atoms(*STEEP) | g.atoms(*STEEP)]
    steps, steep = a.has(*STEPS) or g.has(*STEPS), bool(symbols_in(exponents))
    counted = symbols_in(a.atoms(*COUNTS) | g.atoms(*COUNTS))
    named = {symbol for symbol in symbols if steps and symbol.name[0] in WHOLE_NAMES}

    def value(index: int, turn: int):
        symbol = symbols[index]
        rng = random.Random(f"{symbol.name} {turn}")
        if turn >= 20 or symbol in counted | named:
            whole = turn if len(symbols) == 1 else rng.randint(2, 40)
            hundreds = turn >= 30 and not steep and symbol not in counted
            return sympy.Integer(whole * 50 if hundreds else whole)
        fraction = sympy.Rational(rng.randint(100, 3000), rng.randint(900, 1100))
        if turn < 4:
            return fraction
        negative = (turn - 4) >> index & 1 if index < 3 else rng.random() < 0.5
        factor = min(FACTORS[(turn - 4) // 2], 5) if steep else FACTORS[(turn - 4) // 2]
        return -fraction * factor if negative else fraction * factor

    if steps or counted:
        turns = 41
    else:
        turns = 12 if steep else 22
    return [{symbol: value(index, turn) for index, symbol in enumerate(symbols)} for turn in range(turns)]


def is_zero(number) -> bool:
    """Whether a sympy number is zero: exactly, or to 200 digits more than it is made of."""
    if number.is_Rational:
        return number == 0
    parts = number.evalf(15, maxn=200 + int(bits(number))).as_real_imag()
    if number.has(sympy.core.function.AppliedUndef):
        return False
    if not all(part.is_Float or part.is_Rational for part in parts):
        return False
    # A precision of 1 bit: only cancellation was left.
    return all(part == 0 or (part.is_Float and part._prec == 1) for part in parts)


def _complex(expression, point: dict) -> bool:
    """Whether an even root or a logarithm in it is one of a negative number there: it is not real."""
    roots = [part for part in expression.atoms(sympy.Pow) if part.exp.is_Rational and part.exp.q % 2 == 0]
    inside = [part.args[0] for part in [*roots, *expression.atoms(sympy.log)] if part.free_symbols]
    return any(part.subs(point).evalf(15).is_negative for part in inside)


def equal(a, g) -> bool:
    """Whether two expressions are equal at all `points`; at three of them at least both must be defined."""
    if a.free_symbols != g.free_symbols:
        return False
    if a == g and a.free_symbols:  # written alike by sympy: floors are slow to compute
        return True
    agreed, real = 0, not (a.has(sympy.I) or g.has(sympy.I))
    try:
        for point in points(a, g):
            if point and real and all(_complex(side, point) for side in (a, g)):
                continue
            x, y = a.subs(point), g.subs(point)
            if is_zero(x - y):
                agreed += 1
            elif not point or (x - y).has(sympy.I) or (x.evalf(15).is_real and y.evalf(15).is_real):
                return False  # else the point is outside the domain of one of them
    except ArithmeticError:  # undecided: no number of digits was enough
        return False
    return agreed >= (3 if a.free_symbols else 1)


def proportional(a, g, positive: bool) -> bool:
    """Whether a = 0 and g = 0 are the same equation up to a factor; a < 0 and g < 0 up to a positive one."""
    if a.free_symbols != g.free_symbols or not a.free_symbols:
        return False
    if not positive:
        a, g = (sympy.fraction(sympy.together(side))[0] for side in (a, g))
    first = points(a, g)[0]
    if is_zero(a.subs(first)) or is_zero(g.subs(first)):
        return False
    factor = a.subs(first) / g.subs(first)
    return bool(factor.evalf(15).is_positive or not positive) and equal(a, factor * g)
