r"""When two mathematical answers are the same. Pure functions: no processes, no clock.

    quick_equal(r"\frac{1}{2}", "0.5")          # True or False; None where it takes algebra
    math_equal("x+1", "1+x")                    # True or False, algebra included; may take hours

Both answers are normalised and read into trees (lists, intervals, matrices, equations ..), which are compared
part by part: exact fractions and words at once, expressions by math-verify's LaTeX reader and 200 digits of
sympy.
"""

import itertools
import random
import re
import unicodedata
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache

# ---- reading an answer -------------------------------------------------------------------------------------

SYMBOLS = dict(zip("−–×·⋅÷±∓≤⩽≥⩾≠∞∪∩∈∅√°∘ℝ⟨⟩€£。′’⁄", (
    r"-|-|\times |\cdot |\cdot |/|\pm |\mp |\le |\le |\ge |\ge |\ne |\infty |\cup |\cap |\in |\emptyset |"
    r"\sqrt |^\circ |\circ |\mathbb{R}|\langle |\rangle |\$|\$|.|'|'|/").split("|")))  # fmt: skip
FUNCTIONS = (
    "sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|ln|log|exp|lcm|gcd|det|max|min|arg|Re|Im"
)
ARGUMENT = r"\{(?:[^{}]|\{[^{}]*\})*\}"
REWRITES = [(re.compile(pattern), replacement) for pattern, replacement in (
    # layout
    (r"(?<!\\)\\(?:[()\[\]!]|(?:left|right)(?![a-z])\.?|[bB]igg?[lrm]?(?![a-z])"
     r"|(?:display|text)style(?![a-z])|\s*$)", ""),
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
    # A space goes unless it keeps two numbers or names apart: "1 1/2" is not 11/2, "1, 234" are two numbers.
    (r" +", " "),
    (r"(?<!\w)(?<!,) | (?!\w)|(?<=,) (?!\d{3}(?!\d))|(?<![a-zA-Z\d]\d)(?<=\d) (?=[a-zA-Z](?![a-zA-Z]))", ""),
    (r"(?<!\.)[.,;:]$", ""),
)]  # fmt: skip


def normalise(answer: str) -> str:
    r"""An answer in one way of writing: ASCII, no layout, one name for one thing, words and units in quotes.

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
    if greek is None:
        return plain
    return f"\\{greek[2].lower() if greek[1] == 'SMALL' else greek[2].capitalize()} "


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
# Two different ones of these are not the same; other words are not compared.
UNITS = {alias: words.split()[0] for words in (
    "mm millimeter millimetre", "cm centimeter centimetre", "m meter metre", "km kilometer kilometre",
    "in inch inche", "ft feet foot", "yd yard", "mi mile", "g gram gm", "kg kilogram", "mg milligram",
    "lb pound", "oz ounce", "ml milliliter", "l liter litre", "s sec second", "min minute", "hr hour h",
    "day", "week", "month", "yr year", "cent", "dollar usd", "percent percentage", "degree deg", "rad radian",
    "am", "pm",
) for alias in words.split()}  # fmt: skip
LONG_UNITS = sorted((unit for unit in UNITS if len(unit) > 1), key=len, reverse=True)
RAW_UNITS = "|".join([*LONG_UNITS, "unit", "mph", "AM", "PM"])
UNIT = re.compile(rf"""
    (?: /? (?:\\times)? \s*
        (?:"[^"]*" | (?<=[\d\s}})])(?:{RAW_UNITS})s?(?![a-z]) | \\frac\{{"[^"]*"\}}\{{"[^"]*"\}})
        (?:\^-?\d | \^\{{-?\d\}})? \s*
    )+$""", re.VERBOSE)  # fmt: skip
TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
NO_UNIT = re.compile(
    r"\b(?:(?i:or|and|not|more|less|least|most|than|to|hundred|thousand|million|billion|trillion|dozen)"
    r"|[abcdefi-knopqrtu-z])\b"
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
    if not tokens or tokens[0].start() or tokens[-1].end() != len(s):
        return None
    if min(depths[:-1], default=0) < 1 or depths[-1]:
        return None
    return tokens[0][0], s[tokens[0].end() : tokens[-1].start()].strip(), tokens[-1][0]


def read(s: str, thousands: bool = True) -> tuple:
    r"""A normalised answer as a tree, so that each part is compared in the way of its kind:

    ("list", items) without order, also for sets, unions and \pm; ("tuple", opening, closing, items), also for
    intervals, which inequalities become; ("matrix", rows); ("ratio", items, unit); ("base", digits, base);
    ("named", value, left, right) for x = ...; ("relation", sign, left, right);
    ("value", text, unit) for all else.

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
        upper_and_lower = ({"pm": "+", "mp": "-"}, {"pm": "-", "mp": "+"})
        signs = [re.sub(r"\\(pm|mp) ?", lambda m: sign[m[1]], s) for sign in upper_and_lower]
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
        named = NAME.fullmatch(left)
        return ("named", read(right, thousands), left, right) if named else ("relation", "=", left, right)
    sides = split(s, "order")
    if 2 <= len(sides) <= 3 and all(sides):
        return _read_order(sides, [token[0] for token in TOKEN.finditer(s) if token.lastgroup == "order"])
    if around := brackets(s):
        opening, inside, closing = around
        if re.fullmatch(r"\\begin\{[pb]?matrix\}", opening):
            rows = [row for row in split(inside, "row") if row]
            return ("matrix", [[read(cell) for cell in split(row, "cell")] for row in rows])
        if opening == "\\{":
            return read(re.split(r"\\mid(?![a-z])|[:|]", inside, maxsplit=1)[-1], thousands=False)
        items = [part for part in split(inside, "comma") if part]
        if len(items) > 1 and opening in ("(", "[", "\\langle"):
            opening, closing = opening.replace("\\langle", "("), closing.replace("\\rangle", ")")
            return ("tuple", opening, closing, [read(item) for item in items])
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
        bounds = [read(sides[0]), read(sides[2])]
        return ("tuple", "(" if strict[0] else "[", ")" if strict[1] else "]", bounds)
    return ("tuple", "<" if strict[0] else "<=", "<" if strict[1] else "<=", [read(side) for side in sides])


def unit_name(unit: str) -> str:
    """The one name of a unit that is in UNITS; "" for any other words, which are not compared."""
    words = re.findall(r"[a-z]+", unit.lower().replace(".", "").replace("\\times", "").replace("\\frac", ""))
    words = [word for word in words if word not in ("square", "sq", "cubic")]
    names = [UNITS.get(word) or UNITS.get(word.rstrip("s")) for word in words]
    return " ".join(names) if all(names) else ""


# ---- comparing two answers ---------------------------------------------------------------------------------

# Words, not products of variables.
WORDS = re.compile(r'"|^[A-Za-z][a-z]{3,}$|^[A-Z]{3,}$|^(?:[Yy]es|[Nn]o|[Oo]dd)$|^[A-E]$')


class Unsure(Exception):
    """The comparison needs algebra."""


def rational(answer: str) -> Fraction | None:
    r"""The exact value of a normalised integer, decimal, fraction, mixed number or power of ten; else None.

    >>> rational(r"-\frac{3}{6}"), rational("1,250.5"), rational(r"2 1/3"), rational("2x")
    (Fraction(-1, 2), Fraction(2501, 2), Fraction(7, 3), None)
    >>> rational(r"1.2\times 10^{-2}")
    Fraction(3, 250)
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
    """Equal, or within `meta`'s "rel_tol" (SciBench) or "abs_tol" (OlympiadBench); others set none."""
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
    if WORDS.search(a[1]) or WORDS.search(g[1]):
        return False
    if re.search(r"(^|[^\d_^])\d+ \d", f"{a[1]}&{g[1]}"):  # "3 4" is no number
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
        alike = a[1:3] == g[1:3] and len(a[3]) == len(g[3])
        return alike and all(same(x, y, leaf) for x, y in zip(a[3], g[3]))
    if a[0] == "matrix":
        shapes = [[len(row) for row in t[1]] for t in (a, g)]
        cells = ((x, y) for rows in zip(a[1], g[1]) for x, y in zip(*rows))
        return shapes[0] == shapes[1] and all(same(x, y, leaf) for x, y in cells)
    if len(a[1]) != len(g[1]):
        return False
    if a[0] == "ratio":
        x, y = ([rational(part[1]) for part in t[1]] for t in (a, g))
        clock = len(g[1][-1][1]) == 2  # 2:30 may be a time, which is not 1:15
        if clock or None in x + y or 0 in x + y:
            units_agree = not a[2] or not g[2] or a[2] == g[2]
            return units_agree and all(same(p, q, leaf) for p, q in zip(a[1], g[1]))
        return [p * y[0] for p in x] == [q * x[0] for q in y]
    # Lists and unions. Equality is transitive, so the first partner that fits is as good as any other.
    left = list(g[1])
    for item in a[1]:
        partner = next((i for i, other in enumerate(left) if same(item, other, leaf)), None)
        if partner is None:
            return False
        del left[partner]
    return True


def nesting(s: str) -> int:
    return max(itertools.accumulate((c in "({[") - (c in ")}]") for c in s), default=0)


SHORT_NUMBER = re.compile(
    r"([-+]?[\d.,]*\d(?:[eE][-+]?\d+|\\times ?10\^(?:\{-?\d+\}|\d))?) ?[A-Za-z/][A-Za-z/^{}\-\d .]*"
)


def equal(answer: str, gold: str, meta: dict, leaf) -> bool:
    """Whether two answers are the same; `leaf(a, g, meta)` compares parts. 1,234 is a number or a list."""
    if len(answer) > 2000 or len(gold) > 2000 or nesting(answer) > 40:
        return answer == gold
    answer, gold = normalise(answer), normalise(gold)
    if "rel_tol" in meta and (short := SHORT_NUMBER.fullmatch(answer)) and not NO_UNIT.search(answer):
        answer = short[1]  # 8.31 J/K without \text
    readings = (True, False) if THOUSANDS.fullmatch(gold) and "," in gold else (True,)
    # SciBench: the unit may carry a power of ten.
    scales = ("", *re.findall(r"10\^(?:\{-?\d+\}|\d+)", meta.get("unit", "")))
    scaled = [gold + (scale and rf"\times {scale}") for scale in scales]
    return any(
        same(read(answer, thousands), read(one, thousands), lambda a, g: leaf(a, g, meta))
        for thousands in readings for one in scaled
    )


def quick_equal(answer: str, gold: str, meta: dict | None = None) -> bool | None:
    """Whether two answers are the same where it is certain without algebra, else None."""
    with suppress(Unsure, RecursionError):
        return equal(answer, gold, meta or {}, quick_leaf)
    return None


# ---- algebra -----------------------------------------------------------------------------------------------

# Expressions that no answer needs and that sympy could be busy with for hours.
BOMB = re.compile(r"\d{5,}[!^]|\^\{?-?\d{5,}|!!|(\^[^^]{0,9}){4}|\d{1000}|\\(int|sum|prod|lim)[^a-z].*\d{4,}")


@lru_cache(4096)
def expression(latex: str):
    """A normalised expression as a sympy object: decimals exact, i imaginary. None for what is no formula."""
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
    # A precision of 1 bit: only cancellation was left.
    return all(part == 0 or (part.is_Float and part._prec == 1) for part in parts)


def points(symbols) -> list[dict]:
    """Values for the symbols, by name: small, negative, large and whole ones, the same in every process."""
    import sympy

    def value(name: str, turn: int):
        rng = random.Random(f"{name} {turn}")
        fraction = sympy.Rational(rng.randint(100, 3000), rng.randint(900, 1100))
        if turn < 8:
            return fraction * (1, 1, 1, -1, -1, 11, 17, 29)[turn]
        return sympy.Integer(rng.randint(2, 9))

    return [{symbol: value(symbol.name, turn) for symbol in symbols} for turn in range(10 if symbols else 1)]


def equal_expressions(a, g) -> bool | None:
    """Whether two sympy expressions are equal: exactly for fractions, else to 200 digits at ten points.

    None: undecided.
    """
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
    """Whether two equations are the same up to a factor, or two inequalities up to a positive one."""
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
    if verdict is None:  # sets, or functions without a rule; not numbers, which math-verify rounds
        from math_verify import verify as judge

        alike = all(isinstance(t, sympy.Set) for t in (x, y)) or all(t.has(AppliedUndef) for t in (x, y))
        return alike and judge(y, x, timeout_seconds=None)
    if not verdict and meta.get("rel_tol", meta.get("abs_tol")) and not (x.free_symbols or y.free_symbols):
        numbers = [Fraction(str(v)) for v in (x.evalf(20), y.evalf(20)) if v.is_Float or v.is_Rational]
        return len(numbers) == 2 and close(*numbers, meta)
    return verdict


def math_equal(answer: str, gold: str, meta: dict | None = None) -> bool:
    """Whether two answers are the same, algebra included. May take hours: run it under a time limit."""
    return equal(answer, gold, meta or {}, algebra_leaf)
