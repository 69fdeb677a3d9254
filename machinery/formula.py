r"""A LaTeX formula as a sympy expression, and when two of them are equal.

    read(r"\frac12x^2")                          # x**2/2
    equal(read(r"\sqrt{18}"), read("3*sqrt(2)"))   # True

A reader of our own: math-verify's takes 2(3) for 5 and f'(x) for f(x), and seconds for 18 brackets. Exact: decimals
are fractions, and numbers must agree to 200 digits more than they have. What is no formula, or would keep sympy busy
for long, is None.
"""

import random
import re
from functools import lru_cache

import sympy

TOKEN = re.compile(r"\s*(\d+\.?\d*|\.\d+|\\[a-zA-Z]+|[A-Za-z]'*|\.(?=\\overline)|[-+/^_!=(){}\[\]|])")
GREEK = set("alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho sigma tau phi "
            "varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega triangle".split())  # fmt: skip
TRIGONOMETRY = ("sin", "cos", "tan", "cot", "sec", "csc")
FUNCTIONS = (*TRIGONOMETRY, "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln", "log", "exp")
CLOSING = {"(": ")", "{": "}", "[": "]", "|": "|", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
MOST_BITS, MOST_LETTERS, MOST_DEPTH = 300_000, 400, 30


class Unreadable(ValueError):
    """No formula, one that may be meant in two ways, or one that is too large."""


class Reader:
    """Recursive descent: a sum of products of factors, which are atoms with powers."""

    def __init__(self, text: str):
        self.tokens, self.at, self.depth, self.bars = [], 0, 0, 0
        self.degrees, self.integrals = False, 0
        end = 0
        while match := TOKEN.match(text, end):
            self.tokens.append(match[1])
            end = match.end()
        if text[end:].strip() or len(text) > MOST_LETTERS:
            raise Unreadable(text)

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        token = self.peek()
        if token == "" or (wanted and token not in wanted):
            raise Unreadable(token)
        self.at += 1
        return token

    def sum(self):
        value = self.product()
        while self.peek() in ("+", "-"):
            value = value + self.product() if self.take() == "+" else value - self.product()
        return value

    def product(self):
        value, divided = self.factor(), False
        while True:
            token = self.peek()
            if token in ("\\times", "/"):
                divided = self.take() == "/"
                value = value / self.nonzero(self.factor()) if divided else value * self.factor()
            elif self.begins_atom(token):
                after_number = self.tokens[self.at - 1] not in ("i", "!", ")") and token[0] in ".0123456789"
                if divided or after_number:  # 1/2x may be 1/(2x); "3 4" is no number
                    raise Unreadable(token)
                value = value * self.factor()
            else:
                return value

    def begins_atom(self, token: str) -> bool:
        if token == "|":
            return self.bars == 0
        if token == "d" and self.integrals:
            return False
        return token != "" and token not in ("\\times", "\\rfloor", "\\rceil", "\\degree") and token[0] not in '+-/^_!=)}]"'

    def nonzero(self, value):
        if value == 0:
            raise Unreadable("a division by 0")
        return value

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
                if value.is_number and not (value.is_Integer and 0 <= value <= 3000):
                    raise Unreadable("a large factorial")
                value = sympy.factorial(value)
            elif self.degrees:
                value = value * sympy.pi / 180
        return value

    def argument(self):
        r"""{..}, (..), a command with its arguments, a number, or a letter."""
        token = self.peek()
        if token == "-":
            self.take()
            return -self.argument()
        if token in CLOSING and token not in "[|" or token[:1] == "\\":
            return self.atom()
        if token.isdigit():
            return sympy.Integer(self.take())  # never a mixed number
        if not re.fullmatch(r"[A-Za-z]", token):
            raise Unreadable(token)
        return self.atom()

    def digit(self):
        r"""An argument of \frac or \sqrt: of 12 the 1 alone."""
        token = self.peek()
        if token.isdigit() and len(token) > 1:
            self.tokens[self.at : self.at + 1] = [token[0], token[1:]]
        return self.argument()

    def atom(self):
        token = self.take()
        if token[0] in ".0123456789":
            return self.number(token)
        if token in CLOSING:
            self.bars += token == "|"
            value = self.sum()
            self.take(CLOSING[token])
            self.bars -= token == "|"
            wrap = {"|": sympy.Abs, "\\lfloor": sympy.floor, "\\lceil": sympy.ceiling}.get(token)
            return wrap(value) if wrap else value
        name = token.removeprefix("\\")
        if token in ("i", "e", "\\pi"):
            return {"i": sympy.I, "e": sympy.E, "\\pi": sympy.pi}[token]
        if token[0].isalpha() or name in GREEK:
            return self.symbol(token)
        if name == "frac":
            top = self.digit()
            return top / self.nonzero(self.digit())
        if name == "binom":
            n, k = self.digit(), self.digit()
            if any(value.is_number and not (value.is_Integer and abs(value) <= 3000) for value in (n, k)):
                raise Unreadable("a large binomial coefficient")
            return sympy.binomial(n, k)
        if name == "sqrt":
            degree = sympy.Integer(2)
            if self.peek() == "[":
                degree = self.atom()
            value = self.digit()
            if degree.is_odd and value.is_negative:
                return -power(-value, 1 / degree)
            return power(value, 1 / self.nonzero(degree))
        if name in FUNCTIONS:
            return self.function(name)
        if name in ("sum", "int"):
            return self.series() if name == "sum" else self.integral()
        raise Unreadable(token)

    def number(self, token: str):
        """An integer, a decimal, a repeating decimal or a mixed number."""
        value = sympy.Rational("0" + token.rstrip("."))
        following = self.tokens[self.at : self.at + 3]
        if following[:1] == ["\\overline"] and "." in token:
            self.take()
            period = "".join(self.tokens[self.at + 1 : self.at + 2])
            self.atom()
            places = len(token.partition(".")[2])
            if not period.isdigit():
                raise Unreadable(period)
            return value + sympy.Rational(int(period), (10 ** len(period) - 1) * 10**places)
        if following[:1] == ["\\frac"] and token.isdigit():
            fraction = self.atom()
            return value + fraction if fraction.is_Rational and fraction > 0 else value * fraction
        if token.isdigit() and len(following) == 3 and following[1] == "/" and "".join(following[::2]).isdigit():
            self.at += 3
            return value + sympy.Rational(int(following[0]), int(following[2]))
        return value

    def symbol(self, token: str):
        if self.peek() == "_":
            self.take()
            start = self.at
            self.argument()
            token += "_" + "".join(self.tokens[start : self.at]).strip("{}")
        if token[0] in "fg" and self.peek() in ("(", "{"):
            return sympy.Function(token)(self.atom())
        return sympy.Symbol(token, real=True)

    def function(self, name: str):
        exponent, base = None, None
        while self.peek() in ("^", "_"):
            if self.take() == "^":
                exponent = self.argument()
            else:
                base = self.argument()
        if exponent == -1 or (base is not None and name != "log"):
            raise Unreadable(name)  # the inverse or 1/f
        outside, self.degrees = self.degrees, self.degrees or name in TRIGONOMETRY
        bracket = self.peek() in ("(", "{")
        value = self.postfix(self.atom()) if self.peek() == "{" else self.atom() if bracket else self.factor()
        while not bracket and self.begins_atom(self.peek()) and self.peek() != "(" and self.peek()[1:] not in FUNCTIONS:
            value = value * self.factor()
        self.degrees = outside
        if name == "log":
            value = sympy.log(value) / self.nonzero(sympy.log(base) if base is not None else sympy.Integer(1))
        else:
            value = getattr(sympy, {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "ln": "log"}.get(name, name))(value)
        return value if exponent is None else power(value, exponent)

    def series(self):
        r"""\sum_{k=1}^{10} k, term by term."""
        self.take("_")
        self.take("{")
        variable = self.symbol(self.take())
        self.take("=")
        low = self.sum()
        self.take("}")
        self.take("^")
        high = self.argument()
        body = self.product()
        if not (low.is_Integer and high.is_Integer and 0 <= high - low <= 1000):
            raise Unreadable("a long sum")
        return sympy.Add(*(body.subs(variable, k) for k in range(int(low), int(high) + 1)))

    def integral(self):
        r"""\int_0^1 x^2 dx of a polynomial."""
        self.take("_")
        low = self.argument()
        self.take("^")
        high = self.argument()
        self.integrals += 1
        body = self.sum()
        self.take("d")
        self.integrals -= 1
        variable = self.symbol(self.take())
        if not body.is_polynomial(variable) or sympy.degree(body, variable) > 100:
            raise Unreadable("an integral")
        return sympy.integrate(body, (variable, low, high))


def bits(expression) -> float:
    """About the length of the numbers that sympy would come to, at one of `points` where there are symbols."""
    if expression.is_Rational:
        return expression.p.bit_length() + expression.q.bit_length()
    if not expression.args:
        return 3 if expression.is_number else 8
    sizes = [bits(part) for part in expression.args]
    if expression.is_Pow or expression.func.__name__ in ("exp", "factorial", "gamma"):
        exponent = expression.args[-1]
        largest = float(abs(exponent)) if exponent.is_Rational else 2.0 ** min(sizes[-1], 100)
        return sizes[0] * max(1, largest)
    return max(sizes) + len(sizes) if expression.is_Add else sum(sizes)


def power(base, exponent):
    """base ** exponent, where that is no bomb."""
    if base == 0 and not exponent.is_positive:
        raise Unreadable("0 to a power that is not positive")
    if bits(sympy.Pow(base, exponent, evaluate=False)) > MOST_BITS:
        raise Unreadable("a large power")
    return base**exponent


@lru_cache(4096)
def read(text: str):
    """The sympy expression; None for what is none."""
    try:
        reader = Reader(text)
        value = reader.sum()
        if reader.peek():
            return None
    except (Unreadable, ArithmeticError, TypeError, ValueError, RecursionError):
        return None
    return None if value.has(sympy.nan, sympy.zoo, sympy.oo) or bits(value) > MOST_BITS else value


def points(symbols) -> list[dict]:
    """Values for the symbols, by name: small, negative, large and whole ones, the same in every process."""
    def value(name: str, turn: int):
        rng = random.Random(f"{name} {turn}")
        fraction = sympy.Rational(rng.randint(100, 3000), rng.randint(900, 1100))
        if turn < 8:
            return fraction * (1, 1, 1, -1, -1, 11, 17, 29)[turn]
        return sympy.Integer(rng.randint(2, 9))

    return [{symbol: value(symbol.name, turn) for symbol in symbols} for turn in range(10 if symbols else 1)]


def is_zero(number) -> bool:
    """Whether a sympy number is zero: exactly, or to 200 digits more than it is made of."""
    if number.is_Rational:
        return number == 0
    value = number.evalf(15, maxn=200 + int(bits(number)))
    parts = value.as_real_imag()
    if number.atoms(sympy.core.function.AppliedUndef) or not all(part.is_Float or part.is_Rational for part in parts):
        return False
    # A precision of 1 bit: only cancellation was left.
    return all(part == 0 or (part.is_Float and part._prec == 1) for part in parts)


def equal(a, g) -> bool:
    """Whether two expressions are equal, at ten points for their symbols: at three both must be defined."""
    if a.free_symbols != g.free_symbols:
        return False
    agreed = 0
    for point in points(a.free_symbols):
        x, y = a.subs(point), g.subs(point)
        if is_zero(x - y):
            agreed += 1
        elif not point or x.has(sympy.I) or y.has(sympy.I):
            return False
        elif x.evalf(15).is_real and y.evalf(15).is_real:  # else outside the domain of one of them
            return False
    return agreed >= (3 if a.free_symbols else 1)


def proportional(a, g, positive: bool) -> bool:
    """Whether a = 0 and g = 0 are the same equation up to a factor, for inequalities up to a positive one."""
    if not positive:
        a, g = (sympy.fraction(sympy.together(side))[0] for side in (a, g))
    if a.free_symbols != g.free_symbols or not a.free_symbols:
        return False
    first = points(a.free_symbols)[0]
    factor = a.subs(first) / g.subs(first) if not is_zero(g.subs(first)) else 0
    if is_zero(factor) or (positive and not factor.evalf(15).is_positive):
        return False
    return equal(a, factor * g)


def written(value) -> str:
    """An expression as `read` reads it: 1/2, and other LaTeX than most people's for all else."""
    short = value.is_Rational and bits(value) < 400
    return str(value) if short else sympy.latex(value).replace("\\log", "\\ln")
