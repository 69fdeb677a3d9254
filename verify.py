r"""Rewards one can check: completion + problem -> right or wrong.

    from verify import Verifier, verify
    verify(r"... so the answer is \boxed{\frac{1}{2}}", problem)                # one completion -> bool
    verdicts = Verifier(workers=2).score(completions, problems)                 # a batch -> list[Verdict]

Mathematics: both answers are read into trees (lists, intervals, matrices, equations ..) and compared part by part: exact
fractions and words at once, expressions by math-verify's LaTeX reader and 40 digits of sympy. Code: the program runs in a
sandbox and is only ever asked for results; the tests stay outside. What takes long or is not ours runs in worker processes
that are killed when they exceed the time limit, so no completion can stall or crash a training run. Nothing is swallowed:
time-outs and errors are verdicts of their own, and the scripts log their counts. docs/verify.md has the rules and figures.

A verifier of your own is a function `(completion: str, problem: data.Problem) -> bool`, named as "module:function"; it
runs in the same killable workers.

    python verify.py --answer "\frac{1}{2}" --completion "... \boxed{0.5}"      # one completion
    python verify.py --data FILE                                                # reference answers against themselves
    python verify.py --cases FILE --require 0.99                                # labelled cases: accuracy, false positives
"""

import argparse
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
import random
import re
import resource
import select
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections import Counter, deque
from contextlib import suppress
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cache, lru_cache
from pathlib import Path

from data import COUNTDOWN_MAX, Problem, UserError, last_box, load, read_file

WHY = ("right", "wrong", "no answer", "timeout", "error")
MATH_SECONDS = 1.5  # of wall time for one comparison; the worker gives up by itself after 1 s of CPU time
CODE_SECONDS = 5  # of CPU time for one program with all its tests, and twice that of wall time


@dataclass(frozen=True)
class Verdict:
    correct: bool
    why: str  # one of WHY


RIGHT, WRONG, NO_ANSWER = Verdict(True, "right"), Verdict(False, "wrong"), Verdict(False, "no answer")
TIMEOUT, ERROR = Verdict(False, "timeout"), Verdict(False, "error")
VERDICTS = {verdict.why: verdict for verdict in (RIGHT, WRONG, NO_ANSWER, TIMEOUT, ERROR)}

# ---- Countdown, multiple choice -----------------------------------------------------------------------------------------

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


def choice_verdict(completion: str, problem: Problem) -> Verdict:
    answer = last_box(completion)
    if answer is None:
        return NO_ANSWER
    letter = re.sub(r"\\[a-z]+|[^A-Za-z]", "", answer)
    return RIGHT if letter.upper() == problem.answer.strip().upper() else WRONG


# ---- reading an answer -----------------------------------------------------------------------------------------------

SYMBOLS = dict(zip("−–×·⋅÷±∓≤⩽≥⩾≠∞∪∩∈∅√°∘ℝ⟨⟩€£。′’⁄", (
    r"-|-|\times |\cdot |\cdot |/|\pm |\mp |\le |\le |\ge |\ge |\ne |\infty |\cup |\cap |\in |\emptyset |\sqrt |^\circ |\circ |"
    r"\mathbb{R}|\langle |\rangle |\$|\$|.|'|'|/").split("|")))  # fmt: skip
FUNCTIONS = "sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|ln|log|exp|lcm|gcd|det|max|min|arg|Re|Im"
ARGUMENT = r"\{(?:[^{}]|\{[^{}]*\})*\}"
REWRITES = [(re.compile(pattern), replacement) for pattern, replacement in (
    # layout
    (r"(?<!\\)\\(?:[()\[\]!]|(?:left|right)(?![a-z])\.?|[bB]igg?[lrm]?(?![a-z])|(?:display|text)style(?![a-z])|\s*$)", ""),
    (r"^[*_\s~]+(?=[^*_]*[*_\s~]+$)|(?<=[^*_])[*_\s~]+$", ""),  # **12** of Markdown
    (r"(?<!\\)\\[,;:> ]|\\q?quad(?![a-z])|~|\s+", " "),
    (r"(?<![a-z])\{ *([-+,]) *\}", r"\1"),
    # one name for one thing
    (r"\\[dtc](frac|binom)(?![a-z])", r"\\\1"),
    (r"\\(?:cdot|ast)(?![a-z])|(?<!\*)\*(?!\*)", r"\\times "),
    (r"\*\*", "^"),
    (r"\\(?:ne|neq)(?![a-z])|!=", r"\\ne "),
    (r"(?<![\\a-zA-Z])(pi|sqrt|infty)(?![a-z])|(?<![\\a-zA-Z])(inf)inity", lambda m: f"\\{m[1] or 'infty'} "),
    (r"\\varnothing|\\\{ *\\\}", r"\\emptyset "),
    (r"\\([lr])brace(?![a-z])", lambda m: r"\{" if m[1] == "l" else r"\}"),
    (r"\\math(?:bb|bf) *\{?R\}?|\\Reals(?![a-z])", r"\\mathbb{R}"),
    # words: "..." is what stood in \text{}, unless it is a number, a bracket, or one of the constants e and i
    (r"\{ *\\(?:rm|bf|it|cal) ([^{}]*)\}", r"\\text{\1}"),
    (rf"\\(?:operatorname\*?|mathrm|text) *\{{({FUNCTIONS})\}}", r"\\\1 "),
    (r"\\(?:text\w*|[mh]box|math(?:rm|bf|sf|it|tt|normal)|operatorname|boldsymbol|bm) *\{ *([^{}]*?) *\}",
     lambda m: m[1] if re.fullmatch(r"[^A-Za-z]*|[ei]|.*\\[a-z].*", m[1]) else f' "{m[1]}" '),
    (r'"\(([^"()]*)\)"', r'"\1"'),  # \text{(B)}
    (r'"(\d[\d:., ]*)([A-Za-z][^"\d]*)"', r'\1 "\2"'),  # \text{4:30 p.m.}
    # signs that are words
    (r"\\\$", ' "dollar" '),
    (r"\$", ""),
    (r"\\?%", ' "percent" '),
    (r"\^ *\{? *\\circ *\}?|\\degrees?(?![a-z])", ' "degree" '),
    # arguments in braces
    (r"\{ *([^{}]*?) *\\choose(?![a-z]) *([^{}]*?) *\}", r"\\binom{\1}{\2}"),
    (r"\\sqrt *\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"\\(frac|sqrt|binom) *([0-9a-zA-Z])", r"\\\1{\2}"),
    (rf"(\\(?:frac|binom) *{ARGUMENT}) *([0-9a-zA-Z])", r"\1{\2}"),
    (r"\^(-\d+|\d{2,})", r"^{\1}"),  # 2^10 is not written by who means 2^1 times 0
    (r"([\^_])\{(\w)\}(?!\d)", r"\1\2"),
    # A space goes unless it keeps two numbers or names apart: "1 1/2" is not 11/2, and "1, 234" are two numbers.
    (r" +", " "),
    (r"(?<!\w)(?<!,) | (?!\w)|(?<=,) (?!\d{3}(?!\d))|(?<![a-zA-Z\d]\d)(?<=\d) (?=[a-zA-Z](?![a-zA-Z]))", ""),
    (r"(?<!\.)[.,;:]$", ""),
)]  # fmt: skip


def normalise(answer: str) -> str:
    r"""An answer in one way of writing: ASCII, no layout, one name for one thing, words of \text{} and units in quotes.

    >>> normalise(r"$\dfrac12$. "), normalise(r"~42 \text{ cm}^2"), normalise("2½ %")
    ('\\frac{1}{2}', '42"cm"^2', '2\\frac{1}{2}"percent"')
    """
    answer = answer.replace('"', "")
    if not answer.isascii():
        answer = re.sub(r"√ *(\d+|\w)", r"\\sqrt{\1}", answer)  # a root sign is over the whole number
        answer = re.sub(r"\}([\^_])\{", "", "".join(map(_ascii, answer)))
    for pattern, replacement in REWRITES:
        answer = pattern.sub(replacement, answer)
    return answer.strip()


def _ascii(char: str) -> str:
    """One character in ASCII LaTeX where there is one."""
    if char.isascii() or char in SYMBOLS:
        return SYMBOLS.get(char, char)
    kind, plain = unicodedata.decomposition(char).split(" ")[0], unicodedata.normalize("NFKC", char)
    if kind == "<fraction>":
        return "\\frac{{{}}}{{{}}}".format(*plain.split("⁄"))
    if kind in ("<super>", "<sub>"):
        return f"{'^' if kind == '<super>' else '_'}{{{SYMBOLS.get(plain, plain)}}}"
    greek = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", unicodedata.name(char, ""))
    return plain if greek is None else f"\\{greek[2].lower() if greek[1] == 'SMALL' else greek[2].capitalize()} "


TOKEN = re.compile(r"""
    (?P<open> \\\{ | \\langle(?![a-z]) | \\begin\{\w+\*?\} | [(\[{])
  | (?P<close> \\\} | \\rangle(?![a-z]) | \\end\{\w+\*?\} | [)\]}])
  | (?P<cup> \\cup(?![a-z]))
  | (?P<or> "[,\ ]*(?:and|or)[,\ ]*" | (?<![a-z\\])(?:and|or)(?![a-z]))
  | (?P<comma> [,;])
  | (?P<order> \\(?:[lg]eq?(?:slant)?|[lg]t)(?![a-z]) | [<>]=?)
  | (?P<equal> = | \\(?:approx|simeq|equiv)(?![a-z]))
  | (?P<colon> :)
  | (?P<row> \\\\)
  | (?P<cell> &)
  | "[^"]*" | \\[a-zA-Z]+ | \\.
""", re.VERBOSE)  # fmt: skip
THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?|[-+]?\d{1,3}( \d{3})+(\.\d+)?")
# What may stand before "=": a letter, \theta, x_1, f(x), AB, "Area", |z|, or letters with commas between.
NAME = re.compile(r"""
    -?(?:\\(?:angle|overline|triangle)\ ?)? (?:[A-Za-z]{1,3} | \\[a-z]+ | "[^"]+") (?:_\w | _\{\w+\})?'*
    (?:\([a-z](?:,[a-z])*\))?
  | \(?[a-zA-Z](?:_\w)?(?:,[a-zA-Z](?:_\w)?)+\)? | \|[a-zA-Z]\|
""", re.VERBOSE)  # fmt: skip
UNITS = {alias: words.split()[0] for words in (  # two different ones of these are not the same; other words are not compared
    "mm millimeter millimetre", "cm centimeter centimetre", "m meter metre", "km kilometer kilometre", "in inch inche",
    "ft feet foot", "yd yard", "mi mile", "g gram gm", "kg kilogram", "mg milligram", "lb pound", "oz ounce", "ml milliliter",
    "l liter litre", "s sec second", "min minute", "hr hour h", "day", "week", "month", "yr year", "cent", "dollar usd",
    "percent percentage", "degree deg", "rad radian", "am", "pm",
) for alias in words.split()}  # fmt: skip
RAW_UNITS = "|".join(sorted((unit for unit in UNITS if len(unit) > 1), key=len, reverse=True)) + "|unit|mph|AM|PM"
UNIT = re.compile(rf"""
    (?: /? (?:\\times)? \s*
        (?:"[^"]*" | (?<=[\d\s}})])(?:{RAW_UNITS})s?(?![a-z]) | \\frac\{{"[^"]*"\}}\{{"[^"]*"\}})
        (?:\^-?\d | \^\{{-?\d\}})? \s*
    )+$""", re.VERBOSE)  # fmt: skip
TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
NO_UNIT = re.compile(
    r"\b(?:(?i:or|and|not|more|less|least|most|than|to|hundred|thousand|million|billion|trillion|dozen)|[abcdefi-knopqrtu-z])\b"
)
INFINITY, MINUS_INFINITY = ("value", r"\infty", ""), ("value", r"-\infty", "")


def split(s: str, *kinds: str) -> list[str]:
    """The parts of `s` between the tokens of these kinds that are in no bracket."""
    parts, depth, start = [], 0, 0
    for token in TOKEN.finditer(s):
        depth += (token.lastgroup == "open") - (token.lastgroup == "close")
        if depth == 0 and token.lastgroup in kinds:
            parts.append(s[start : token.start()].strip())
            start = token.end()
    return [*parts, s[start:].strip()]


def brackets(s: str) -> tuple[str, str, str] | None:
    """(opening, inside, closing) where one pair of brackets is around all of `s`."""
    tokens = [token for token in TOKEN.finditer(s) if token.lastgroup in ("open", "close")]
    depths = list(itertools.accumulate(1 if token.lastgroup == "open" else -1 for token in tokens))
    if not tokens or tokens[0].start() or tokens[-1].end() != len(s) or min(depths[:-1], default=0) < 1 or depths[-1]:
        return None
    return tokens[0][0], s[tokens[0].end() : tokens[-1].start()].strip(), tokens[-1][0]


def read(s: str, thousands: bool = True) -> tuple:
    r"""A normalised answer as a tree, so that each part is compared in the way of its kind:

    ("list", items) without order, also for sets, unions and \pm; ("tuple", opening, closing, items), also for
    intervals, which inequalities become; ("matrix", rows); ("ratio", items, unit); ("base", digits, base);
    ("named", value, left, right) for x = ...; ("relation", sign, left, right); ("value", text, unit) for all else.

    >>> read("0<x\\le2")
    ('tuple', '(', ']', [('value', '0', ''), ('value', '2', '')])
    """
    s = s.strip().removeprefix("\\approx").strip()
    if match := re.fullmatch(r'"([^"]*[,;][^"]*)"', s):  # \text{A, B}
        s = ",".join(f'"{word.strip()}"' for word in re.split("[,;]", match[1]))
    if TRIGONOMETRY.search(s):
        s = re.sub(r'(\d+)"degree"', r"{(\\frac{\1\\pi}{180})}", s)
    unit = UNIT.search(s)
    unit = None if unit and NO_UNIT.search(unit[0].replace(".", "")) else unit
    parts = [part for part in split(s, "comma", "or", "cup") if part]
    if len(parts) > 1 and not (thousands and THOUSANDS.fullmatch(s[: unit.start()].strip() if unit else s)):
        return _read_list(parts, thousands)
    if "\\pm" in s or "\\mp" in s:
        signs = [re.sub(r"\\(pm|mp) ?", lambda m: sign[m[1]], s) for sign in ({"pm": "+", "mp": "-"}, {"pm": "-", "mp": "+"})]
        return ("list", [read(re.sub(r"(^|[=(,])\+", r"\1", sign), thousands) for sign in signs])
    if match := re.fullmatch(r"(.+?)\\(in|ne)(?![a-z])(.+)", s):
        if NAME.fullmatch(match[1].strip()):
            what = read(match[3], thousands)
            rays = [("tuple", "(", ")", [MINUS_INFINITY, what]), ("tuple", "(", ")", [what, INFINITY])]
            return what if match[2] == "in" else ("list", rays)
    sides = split(s, "equal")
    if len(sides) > 1 and all(sides):
        left, right = sides[0], sides[-1]
        if NAME.fullmatch(right) and not NAME.fullmatch(left):
            left, right = right, left
        return ("named", read(right, thousands), left, right) if NAME.fullmatch(left) else ("relation", "=", left, right)
    sides = split(s, "order")
    if 2 <= len(sides) <= 3 and all(sides):
        return _read_order(sides, [token[0] for token in TOKEN.finditer(s) if token.lastgroup == "order"])
    if around := brackets(s):
        opening, inside, closing = around
        if re.fullmatch(r"\\begin\{[pb]?matrix\}", opening):
            return ("matrix", [[read(cell) for cell in split(row, "cell")] for row in split(inside, "row") if row])
        if opening == "\\{":
            return read(re.split(r"\\mid(?![a-z])|[:|]", inside, maxsplit=1)[-1], thousands=False)
        items = [part for part in split(inside, "comma") if part]
        if len(items) > 1 and opening in ("(", "[", "\\langle"):
            return ("tuple", opening.replace("\\langle", "("), closing.replace("\\rangle", ")"), [read(item) for item in items])
        if opening + closing in ("()", "{}") and items:
            return read(inside, thousands)
    if re.fullmatch(r"\\math(bb|bf)\{R\}|\\Re", s):
        return ("tuple", "(", ")", [MINUS_INFINITY, INFINITY])
    if unit and (body := s[: unit.start()].strip()):
        inner = read(body, thousands)
        return (*inner[:2], unit_name(unit[0])) if inner[0] in ("value", "ratio") else inner
    if match := re.fullmatch(r'(-?)"dollar"(.+)', s):
        return ("value", match[1] + match[2], "dollar")
    items = split(s, "colon")
    if len(items) > 1 and all(items):
        return ("ratio", [read(item) for item in items], "")
    if match := re.fullmatch(r'(-?)"?0*([0-9A-Z.]+)"?_(?:(\d)|\{(\d+)\})', s):
        if re.search(r"\d", match[2]):
            return ("base", match[1] + match[2], match[3] or match[4])
    return ("value", s, "")


def _read_list(parts: list[str], thousands: bool) -> tuple:
    items = [read(part, thousands) for part in parts]
    named = [item[2] for item in items if item[0] == "named"]
    if len(set(named)) == 1 and (len(named) == len(items) or (len(named) == 1 and items[0][0] == "named")):
        items = [item[1] if item[0] == "named" else item for item in items]  # x=2 or x=3; n=3,4,5
    return ("list", [part for item in items for part in (item[1] if item[0] == "list" else [item])])


def _read_order(sides: list[str], signs: list[str]) -> tuple:
    """Inequalities: of a name an interval, of anything else a relation or the sides in their order."""
    strict = [sign in "<>" or sign in (r"\lt", r"\gt") for sign in signs]
    down = [">" in sign or "\\g" in sign for sign in signs]
    if len(signs) != len(sides) - 1 or len(set(down)) != 1:
        return ("value", " ".join([*sides, *signs]), "")
    if down[0]:
        sides, strict = sides[::-1], strict[::-1]
    if len(sides) == 2 and NAME.fullmatch(sides[0]):
        return ("tuple", "(", ")" if strict[0] else "]", [MINUS_INFINITY, read(sides[1])])
    if len(sides) == 2 and NAME.fullmatch(sides[1]):
        return ("tuple", "(" if strict[0] else "[", ")", [read(sides[0]), INFINITY])
    if len(sides) == 2:
        return ("relation", "<" if strict[0] else "<=", *sides)
    if NAME.fullmatch(sides[1]):
        return ("tuple", "(" if strict[0] else "[", ")" if strict[1] else "]", [read(sides[0]), read(sides[2])])
    return ("tuple", "<" if strict[0] else "<=", "<" if strict[1] else "<=", [read(side) for side in sides])


def unit_name(unit: str) -> str:
    """The one name of a unit that is in UNITS; "" for any other words, which are not compared."""
    words = re.findall(r"[a-z]+", unit.lower().replace(".", "").replace("\\times", "").replace("\\frac", ""))
    names = [UNITS.get(word) or UNITS.get(word.rstrip("s")) for word in words if word not in ("square", "sq", "cubic")]
    return " ".join(names) if all(names) else ""


# ---- comparing two answers -------------------------------------------------------------------------------------------

WORDS = re.compile(r'"|^[A-Za-z][a-z]{3,}$|^[A-Z]{3,}$|^(?:[Yy]es|[Nn]o|[Oo]dd)$|^[A-E]$')  # no product of variables


class Unsure(Exception):
    """The comparison needs algebra."""


class Stopped(BaseException):
    """The answer is settled: "timeout" or "wrong". No `except Exception` of a library or of a test catches it."""


def rational(answer: str) -> Fraction | None:
    r"""The exact value of a normalised integer, decimal, fraction, mixed number or scientific notation; None for the rest.

    >>> rational(r"-\frac{3}{6}"), rational("1,250.5"), rational(r"2 1/3"), rational(r"1.2\times 10^{-2}"), rational("2x")
    (Fraction(-1, 2), Fraction(2501, 2), Fraction(7, 3), Fraction(3, 250), None)
    """
    if len(answer) > 200:
        return None
    fraction = r"([-+]?)(?:(\d+) ?)?(?:\\frac\{(-?\d+)\}\{(-?\d+)\}|(?<!\d)(\d+)/(\d+))"
    if match := re.fullmatch(fraction, answer):
        whole, top, bottom = int(match[2] or 0), int(match[3] or match[5]), int(match[4] or match[6])
        if bottom == 0 or (match[2] and (top < 0 or bottom < 0)):
            return None
        return (whole + Fraction(top, bottom)) * (-1 if match[1] == "-" else 1)
    for power in (r"(?:(.+)\\times ?)?([-+]?)10\^(?:\{([-+]?\d{1,3})\}|(\d))", r"(.+)()[eE]([-+]?\d{1,3})()"):
        if match := re.fullmatch(power, answer):
            head = rational(match[1]) if match[1] else Fraction(1)
            sign = -1 if match[2] == "-" else 1
            return None if head is None else sign * head * Fraction(10) ** int(match[3] or match[4])
    if match := re.fullmatch(r"([-+]?)(\d*)\.(\d*)\\overline\{(\d+)\}", answer):
        start, period = match[2] + match[3], match[4]
        value = Fraction(int(start + period) - int(start or 0), (10 ** len(period) - 1) * 10 ** len(match[3]))
        return -value if match[1] == "-" else value
    if THOUSANDS.fullmatch(answer):
        answer = re.sub("[, ]", "", answer)
    return Fraction(answer) if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)", answer) else None


def close(a: Fraction, b: Fraction, meta: dict) -> bool:
    """Equal, or within `meta`'s "rel_tol" (SciBench) or "abs_tol" (OlympiadBench); neither is ever set for mathematics."""
    tolerance = max(Fraction(meta.get("rel_tol", 0)) * abs(b), rational(str(meta.get("abs_tol", 0))) or 0)
    return abs(a - b) <= tolerance


def quick_leaf(a: tuple, g: tuple, meta: dict) -> bool:
    """Whether two parts without structure are equal; raises Unsure where that needs algebra."""
    if a[0] == "relation":
        if a == g:
            return True
        raise Unsure
    if a[2] and g[2] and a[2] != g[2]:  # both have a unit, and they differ
        return False
    if a[1] == g[1]:
        return True
    if not a[1]:
        return False
    x, y = rational(a[1]), rational(g[1])
    if x is not None and y is not None:
        return close(x, y, meta)
    words_a, words_g = (re.sub(r"[^a-z0-9]", "", s.lower()) if "\\" not in s else None for s in (a[1], g[1]))
    if words_a is not None and words_a == words_g and WORDS.search(g[1]):
        return True
    if WORDS.search(a[1]) or WORDS.search(g[1]) or re.search(r"(^|[^\d_^])\d+ \d", f"{a[1]}&{g[1]}"):  # "3 4" is no number
        return False
    if y is not None and re.fullmatch(r"[^0-9ei\\]*", a[1]):  # a letter for a number
        return False
    raise Unsure


def same(a: tuple, g: tuple, leaf) -> bool:
    """Whether two trees are the same answer; `leaf(a, g)` compares values, and relations with relations."""
    if a[0] == g[0] == "named" and a[2] == g[2]:
        return same(a[1], g[1], leaf)
    equations = {"named", "relation"}
    if a[0] in equations and g[0] in equations:
        return leaf(*(("relation", "=", t[2], t[3]) if t[0] == "named" else t for t in (a, g)))
    if a[0] == "relation" and a[1] == "=" and re.search("[A-Za-z]", a[2]):
        a = read(a[3])
    if "relation" in (a[0], g[0]):
        return False
    a, g = (t[1] if t[0] == "named" else t for t in (a, g))
    if {a[0], g[0]} == {"ratio", "value"}:  # 3:4 is three quarters
        a, g = (("value", "/".join(part[1] for part in t[1]), t[2]) if t[0] == "ratio" else t for t in (a, g))
    if a[0] != g[0] or len(a) != len(g):
        return False
    if a[0] == "value":
        return leaf(a, g)
    if a[0] == "base":
        return a == g
    if a[0] == "tuple":
        return a[1:3] == g[1:3] and len(a[3]) == len(g[3]) and all(same(x, y, leaf) for x, y in zip(a[3], g[3]))
    if a[0] == "matrix":
        shapes = [[len(row) for row in t[1]] for t in (a, g)]
        return shapes[0] == shapes[1] and all(same(x, y, leaf) for rows in zip(a[1], g[1]) for x, y in zip(*rows))
    if len(a[1]) != len(g[1]):
        return False
    if a[0] == "ratio":
        x, y = ([rational(part[1]) for part in t[1]] for t in (a, g))
        clock = len(g[1][-1][1]) == 2  # 2:30 may be a time, which is not 1:15
        if clock or None in x + y or 0 in x + y:
            return (not a[2] or not g[2] or a[2] == g[2]) and all(same(p, q, leaf) for p, q in zip(a[1], g[1]))
        return [p * y[0] for p in x] == [q * x[0] for q in y]
    left = list(g[1])  # lists and unions: equality is transitive, so the first partner that fits is as good as any other
    for item in a[1]:
        partner = next((i for i, other in enumerate(left) if same(item, other, leaf)), None)
        if partner is None:
            return False
        del left[partner]
    return True


def nesting(s: str) -> int:
    return max(itertools.accumulate((c in "({[") - (c in ")}]") for c in s), default=0)


SHORT_NUMBER = re.compile(r"([-+]?[\d.,]*\d(?:[eE][-+]?\d+|\\times ?10\^(?:\{-?\d+\}|\d))?) ?[A-Za-z/][A-Za-z/^{}\-\d .]*")


def equal(answer: str, gold: str, meta: dict, leaf) -> bool:
    """Whether two answers are the same; `leaf(a, g, meta)` compares parts. "1,234" may be a number or a list."""
    if len(answer) > 2000 or len(gold) > 2000 or nesting(answer) > 40:
        return answer == gold
    answer, gold = normalise(answer), normalise(gold)
    if "rel_tol" in meta and (short := SHORT_NUMBER.fullmatch(answer)) and not NO_UNIT.search(answer):
        answer = short[1]  # 8.31 J/K without \text
    readings = (True, False) if THOUSANDS.fullmatch(gold) and "," in gold else (True,)
    scales = ("", *re.findall(r"10\^(?:\{-?\d+\}|\d+)", meta.get("unit", "")))  # SciBench: the unit may carry a power of ten
    return any(
        same(read(answer, thousands), read(gold + (scale and rf"\times {scale}"), thousands), lambda a, g: leaf(a, g, meta))
        for thousands in readings for scale in scales
    )


def quick_verdict(answer: str, gold: str, meta: dict | None = None) -> Verdict | None:
    """Right or wrong where it is certain without algebra, else None."""
    with suppress(Unsure, RecursionError):
        return RIGHT if equal(answer, gold, meta or {}, quick_leaf) else WRONG
    return None


# ---- algebra, in a worker --------------------------------------------------------------------------------------------

# Expressions that no answer needs and that sympy could be busy with for hours.
BOMB = re.compile(r"\d{5,}[!^]|\^\{?-?\d{5,}|!!|(\^[^^]{0,9}){4}|\d{1000}|\\(int|sum|prod|lim)[^a-z].*\d{4,}")


@lru_cache(4096)
def expression(latex: str):
    """A normalised expression as a sympy object, with exact decimals and i the imaginary unit; None for what is no formula."""
    import sympy
    from latex2sympy2_extended import latex2sympy  # math-verify's reader
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    if len(latex) > 400 or nesting(latex) > 20 or '"' in latex or BOMB.search(latex):
        return None
    latex = re.sub(r"(\d*)\.(\d+)", lambda m: rf"(\frac{{{int(m[1] + m[2])}}}{{{10 ** len(m[2])}}})", latex)
    latex = re.sub(r"\\log(?![_a-z])", r"\\ln", latex)
    try:
        config = ConversionConfig(lowercase_symbols=False)
        parsed = latex2sympy(latex, is_real=True, normalization_config=None, conversion_config=config)
    except Exception:  # the reader raises all kinds for what it cannot read
        return None
    if not isinstance(parsed, sympy.Basic):
        return parsed
    parsed = parsed.replace(sympy.UnevaluatedExpr, lambda inner: inner)
    if not parsed.has(sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative):
        parsed = parsed.doit()  # 2^1000 + 1 as an integer: no number of digits would do
    return parsed.subs({symbol: sympy.I for symbol in parsed.free_symbols if symbol.name == "i"})


def is_zero(number) -> bool | None:
    """Whether a sympy number is zero to 200 digits; None if it has no finite value."""
    parts = number.evalf(15, maxn=200).as_real_imag()
    if not all(part.is_Float or part.is_Rational for part in parts):
        return None
    return all(part == 0 or (part.is_Float and part._prec == 1) for part in parts)  # 1 bit: only cancellation was left


def points(symbols) -> list[dict]:
    """Values for the symbols, by name: small, negative, large and whole ones, the same in every process."""
    import sympy

    def value(name: str, turn: int):
        rng = random.Random(f"{name} {turn}")
        fraction = sympy.Rational(rng.randint(100, 3000), rng.randint(900, 1100))
        return fraction * (1, 1, 1, -1, -1, 11, 17, 29)[turn] if turn < 8 else sympy.Integer(rng.randint(2, 9))

    return [{symbol: value(symbol.name, turn) for symbol in symbols} for turn in range(10 if symbols else 1)]


def equal_expressions(a, g) -> bool | None:
    """Whether two sympy expressions are equal: exactly for fractions, else to 200 digits at ten points; None: undecided."""
    import sympy

    if not (isinstance(a, sympy.Expr) and isinstance(g, sympy.Expr)):
        return None
    infinite = (sympy.oo, -sympy.oo, sympy.zoo, sympy.nan)
    if a in infinite or g in infinite:
        return a == g and a in infinite[:2]
    verdicts = []
    for point in points(a.free_symbols | g.free_symbols):
        x, y = a.subs(point), g.subs(point)
        if point and not (x.has(sympy.I) or y.has(sympy.I)):
            values = [v.evalf(15) for v in (x, y)]
            if not all(v.is_real for v in values):  # outside the domain of one of them
                continue
        if (zero := is_zero(x - y)) is False:
            return False
        verdicts.append(zero)
    return True if verdicts.count(True) >= (3 if a.free_symbols | g.free_symbols else 1) else None


def proportional(a: tuple, g: tuple) -> bool:
    """Whether two equations, or two inequalities, are the same up to a factor (a positive one for inequalities)."""
    import sympy

    if a[1] != g[1]:
        return False
    parts = [expression(side) for relation in (a, g) for side in relation[2:]]
    if not all(isinstance(part, sympy.Expr) for part in parts):
        return False
    x, y = parts[0] - parts[1], parts[2] - parts[3]
    if a[1] == "=":
        x, y = (sympy.fraction(sympy.together(side))[0] for side in (x, y))
    first, *others = points(x.free_symbols | y.free_symbols)
    if not others or x.free_symbols != y.free_symbols or is_zero(x.subs(first)) or is_zero(y.subs(first)):
        return False
    if a[1] != "=" and not (x.subs(first) / y.subs(first)).evalf(15).is_positive:
        return False
    verdicts = [is_zero(x.subs(first) * y.subs(p) - x.subs(p) * y.subs(first)) for p in others]
    return False not in verdicts and verdicts.count(True) >= 3


def algebra_leaf(a: tuple, g: tuple, meta: dict) -> bool:
    """`quick_leaf` with algebra."""
    import sympy
    from sympy.core.function import AppliedUndef

    with suppress(Unsure):
        return quick_leaf(a, g, meta)
    if a[0] == "relation":
        return proportional(a, g)
    x, y = expression(a[1]), expression(g[1])
    if x is None or y is None:
        return False
    verdict = equal_expressions(x, y)
    if verdict is None:  # sets, or functions without a rule; math-verify rounds numbers, so it does not judge those
        from math_verify import verify as judge

        alike = all(isinstance(t, sympy.Set) for t in (x, y)) or all(t.has(AppliedUndef) for t in (x, y))
        return alike and judge(y, x, timeout_seconds=None)
    if not verdict and meta.get("rel_tol", meta.get("abs_tol")) and not (x.free_symbols or y.free_symbols):
        numbers = [Fraction(str(v)) for v in (x.evalf(20), y.evalf(20)) if v.is_Float or v.is_Rational]
        return len(numbers) == 2 and close(*numbers, meta)
    return verdict


def math_equal(answer: str, gold: str, meta: dict | None = None, seconds: float = 1.0) -> bool:
    """Whether two answers are the same, algebra included. Main thread only. Raises Stopped after `seconds` of CPU time."""

    def stop(*_):
        raise Stopped("timeout")

    handler = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        return equal(answer, gold, meta or {}, algebra_leaf)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)


# ---- code: a program answers in a sandbox, the tests stay here -------------------------------------------------------

def encode(value, number):
    """A result as JSON: plain values as they are, other built-in ones with their type, anything else as its `number`."""
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
    builders = {"tuple": tuple, "set": set, "frozenset": frozenset, "dict": dict, "deque": collections.deque, "iter": iter}
    return builders[kind](items)


def jail(folders: list[str]) -> None:
    """In fresh namespaces: a root folder in memory with nothing but these folders, read-only, and then no rights at all."""
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
            call("syscall", 442, -100, inside, 0x8000, read_only, 32)  # mount_setattr, with what is mounted in it
    os.mkdir("old")
    call("syscall", 155, ".", "old")  # pivot_root
    os.chdir("/")
    call("umount2", "old", detach)
    os.rmdir("old")
    if open("/proc/self/uid_map").read().split() == ["0", "0", "4294967295"]:  # the real root: its limits would bind no one
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    else:
        call("prctl", 28, 0x2F, 0, 0, 0)  # no rights for a user 0 ..
        call("syscall", 126, (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())  # .. and none kept
    call("prctl", 38, 1, 0, 0, 0)  # no new ones


def child(jailed: bool, stdio: bool, folders: list[str], processes: int, seconds: int) -> None:
    """What the sandboxed interpreter runs: the program as a script, or as a module whose names can be asked for."""
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


CHILD = "import collections, ctypes, itertools, json, os, resource, sys\nsys.set_int_max_str_digits(0)\n" + "\n".join(
    inspect.getsource(function) for function in (encode, decode, jail, child)
)


class Remote:
    """Something of the program that is not a plain value: it can be called and has attributes, but it is equal to nothing,
    because its own == is the program's word."""

    def __init__(self, program, number: int):
        self._program, self._number = program, number

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._program.ask({"do": "attribute", "object": self._number, "name": name})

    def __call__(self, *args, **kwargs):
        arguments = encode((args, kwargs), lambda value: value._number)  # only what came from the program can go back as it is
        return self._program.ask({"do": "call", "object": self._number, "args": arguments})


class Program:
    """A running program in its sandbox. Use as a context; leaving it removes every process and file of the program.

    For workers only: to reach what a program has left behind it ends all children of its own process.
    """

    def __init__(self, source: str, mode: str, stdin=None, stdout=None):
        self.folder = tempfile.mkdtemp(prefix="verify-")
        self.start = time.monotonic()
        self.buffer = b""
        with open(os.path.join(self.folder, "program.py"), "w", encoding="utf-8", errors="replace") as file:
            file.write(source)
        prefix = {"root": [], "user": ["--user", "--map-root-user"]}.get(mode)
        jailed = prefix is not None
        spaces = ["unshare", "--pid", "--net", "--ipc", "--mount", "--mount-proc", "--fork", "--kill-child"]
        folders = ["/usr", "/lib", "/lib64", "/bin", "/dev", "/proc", sys.base_prefix, sys.prefix]
        folders = [f for f in dict.fromkeys(folders) if not any(f != g and f.startswith(g + "/") for g in folders)]
        processes = 64 if jailed else 1024  # without a jail the limit counts everything that the user runs
        call = f"child({jailed}, {stdin is not None}, {folders}, {processes}, {CODE_SECONDS})"
        self.process = subprocess.Popen(
            [*([*spaces, *prefix] if jailed else []), sys.executable, "-I", "-c", f"{CHILD}\n{call}"],
            stdin=stdin or subprocess.PIPE,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            env={"PATH": "/usr/bin:/bin", "HOME": "/", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
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
        return Stopped("timeout" if time.monotonic() - self.start > CODE_SECONDS else "wrong")

    def ask(self, request: dict):
        """The program's answer to one request. Raises what it raised, or Stopped."""
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            while b"\n" not in self.buffer:
                left = self.start + 2 * CODE_SECONDS - time.monotonic()
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
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):  # no reply of `child`
            raise self.over() from None
        known = getattr(builtins, str(reply["raised"]), None)
        raise known() if isinstance(known, type) and issubclass(known, Exception) else RuntimeError(reply["raised"])


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
            if stdio_verdict("import json; print(input())", [{"input": "1", "output": "1"}], mode):
                return mode
    return "rlimits"


def stdio_verdict(source: str, cases: list[dict], mode: str) -> bool:
    """Whether the program prints each case's output, compared by line without trailing blanks. Raises Stopped."""
    end = time.monotonic() + 2 * CODE_SECONDS
    for case in cases:
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as printed:
            given.write(case["input"].encode())
            given.seek(0)
            with Program(source, mode, given, printed) as program:
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


def assert_verdict(source: str, tests: dict, mode: str) -> bool:
    """Whether the tests pass. They run here; names that they use and do not define are the program's. Raises Stopped."""
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
    with Program(source, mode) as program:
        try:
            for name in used - bound - here.keys() - (set(dir(builtins)) - {tests.get("entry_point")}):
                standard = name in sys.stdlib_module_names  # MBPP's tests use `math` without an import
                here[name] = importlib.import_module(name) if standard else program.ask({"do": "name", "name": name})
            exec(compile(code, "tests", "exec"), here)
        except Exception:  # a failed assertion, or an answer that the test can do nothing with
            return False
    return True


def code_why(program: str, tests: dict) -> str:
    """right, wrong or timeout for a program and its tests, {"type": "assert", "code"} or {"type": "stdio", "cases"}."""
    try:
        if tests["type"] == "stdio":
            right = stdio_verdict(program, tests["cases"], sandbox())
        else:
            right = assert_verdict(program, tests, sandbox())
        return "right" if right else "wrong"
    except Stopped as stopped:
        return str(stopped)


def last_program(completion: str) -> str | None:
    """The last closed fenced block of the last 200 kB."""
    blocks = re.findall(r"^ *```[^\n`]*\n(.*?)^ *```", completion[-200_000:].replace("\r\n", "\n"), re.DOTALL | re.MULTILINE)
    return blocks[-1] if blocks else None


# ---- workers ---------------------------------------------------------------------------------------------------------

def work() -> None:
    """A worker: a request in JSON per line of standard input, one of WHY per line of standard output."""
    # The two pipes move to descriptors of their own: what a verifier, or a program that it runs, prints must not look like
    # a verdict, and what it reads must not be a request.
    requests, out = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    ctypes.CDLL(None).prctl(36, 1)  # subreaper: what a program leaves behind becomes a child of the worker, which ends it
    sys.set_int_max_str_digits(0)
    custom = load_function(sys.argv[2]) if len(sys.argv) > 2 else None
    limit = (4 if custom else 2) * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if custom is None and not math_equal("x+1", "1+x", seconds=60):  # imports and warms up sympy before the clock runs
        raise UserError("the installed sympy, math-verify and latex2sympy2-extended do not find x+1 = 1+x")
    print("ready", file=out, flush=True)
    for line in requests:
        request = json.loads(line)
        try:
            if custom is not None:
                why = "right" if custom(request["completion"], Problem(**request["problem"])) else "wrong"
            elif "program" in request:
                why = code_why(request["program"], request["tests"])
            else:
                why = "right" if math_equal(request["answer"], request["gold"], request["meta"]) else "wrong"
        except (Stopped, TimeoutError) as stopped:
            why = str(stopped) if isinstance(stopped, Stopped) else "timeout"
        except Exception as error:  # whatever it is, the parent counts it as a verdict of its own
            print(f"verify: {type(error).__name__}: {error}"[:300], file=sys.stderr)
            why = "error"
        print(why, file=out, flush=True)


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
                tolerance = {key: problem.meta[key] for key in ("rel_tol", "abs_tol", "unit") if key in problem.meta}
                request = {"answer": answer, "gold": problem.answer, "meta": tolerance}
            elif problem.domain == "code":
                if "tests" not in problem.meta:
                    raise UserError(f"problem {problem.id} has no tests: {{type: assert, code}} or {{type: stdio, cases}}")
                program = last_program(completion)
                verdicts[i] = NO_ANSWER if program is None else None
                request = {"program": program, "tests": problem.meta["tests"]}
                report_sandbox()
            else:
                raise UserError(f"problem {problem.id}: there is no verifier for the domain {problem.domain!r} yet")
            if verdicts[i] is None:
                requests.setdefault(json.dumps(request), []).append(i)
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
                raise UserError(f"verifier workers do not start: `python verify.py --worker {self.custom or ''}` says why")
        selector.close()

    def _seconds(self, request: dict) -> float:
        if "program" in request:
            return 2 * CODE_SECONDS + 3
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
def report_sandbox() -> None:
    """Says once how programs are kept in. Asks a process of its own, since `Program` ends every child of its process."""
    asked = subprocess.run([sys.executable, os.path.abspath(__file__), "--sandbox"], capture_output=True, text=True)
    kind = "namespaces" if asked.stdout.strip() in ("root", "user") else "rlimits only"
    print(f"code sandbox: {kind}", file=sys.stderr, flush=True)


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

    Raises UserError if more than 1 % fail: training on rewards that cannot be earned teaches nothing. A verifier of
    the user's own is not checked, since only it knows what a right completion looks like.
    """
    if verifier.custom is not None:
        return problems
    verdicts = verifier.score([gold_completion(p) for p in problems], problems)
    failed = [(p.id, v.why) for p, v in zip(problems, verdicts) if not v.correct]
    if failed:
        named = ", ".join(f"{id} ({why})" for id, why in failed[:20])
        message = f"{len(failed)} of {len(problems)} reference answers do not verify against themselves: {named}"
        if len(failed) > 0.01 * len(problems):
            raise UserError(f"{message}: mend the answers, or bring a verifier of your own with --verifier module:function")
        print(f"{message}: left out", file=sys.stderr)
    bad = {id for id, _ in failed}
    return [p for p in problems if p.id not in bad]


def run_cases(path: str, verifier: Verifier, require: float) -> bool:
    """Labelled cases: prints accuracy, false positives and false negatives by kind; whether `require` is reached.

    Rows have prediction, gold, correct; or completion, tests, correct; or pieces ([[text, repeat]]), gold, correct.
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
            raise UserError(f"{path}, row {number}: needs prediction, completion or pieces; gold or tests; correct") from None
    start = time.monotonic()
    verdicts = verifier.score(completions, problems)
    seconds = time.monotonic() - start
    table: dict[str, Counter] = {}
    for row, verdict in zip(rows, verdicts):
        kind = "right" if verdict.correct == row["correct"] else "false positive" if verdict.correct else "false negative"
        table.setdefault(row.get("kind", "all"), Counter())[kind] += 1
    total = sum(table.values(), Counter())
    for kind, counts in sorted(table.items()):
        if counts["right"] < counts.total():
            print(f"{kind:<28}{counts['false positive']:>4} false positives{counts['false negative']:>4} false negatives"
                  f"  of {counts.total()}")
    accuracy = total["right"] / len(rows)
    print(f"accuracy {accuracy:.4f}, {total['false positive']} false positives, {total['false negative']} false negatives of "
          f"{len(rows)}; {seconds:.1f} s; verdicts {dict(Counter(v.why for v in verdicts))}")
    return accuracy >= require


def main() -> None:
    parser = argparse.ArgumentParser(description="Verify a completion, the reference answers of a data set, or labelled cases.")
    parser.add_argument("--answer", help="the reference answer")
    parser.add_argument("--completion", help=r"a completion with its answer in \boxed{}")
    parser.add_argument("--data", help="a data set whose reference answers to check against themselves")
    parser.add_argument("--split", default="train")
    parser.add_argument("--cases", help="a file of labelled cases")
    parser.add_argument("--require", type=float, default=0.0, help="the accuracy on --cases below which the exit code is 1")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
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
        elif args.answer is not None and args.completion is not None:
            verdict = verifier.score([args.completion], [Problem("cli", "", args.answer)])[0]
            print(verdict.why)
            sys.exit(0 if verdict.correct else 1)
        else:
            raise UserError("give --answer and --completion, or --data, or --cases")


if __name__ == "__main__":
    try:
        if sys.argv[1:2] == ["--worker"]:
            work()
        elif sys.argv[1:2] == ["--sandbox"]:
            print(sandbox())
        else:
            main()
    except UserError as error:
        sys.exit(f"error: {error}")
