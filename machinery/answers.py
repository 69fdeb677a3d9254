r"""When two mathematical answers are the same.

    math_equal(r"\frac{1}{2}", "0.5")       # True
    plain(r"\$32,\!348")                    # "32348": a simple way to write it; None for what no answer is

The same mathematical object counts, in whatever form, and nothing is ever rounded. Order counts in tuples,
intervals and ratios, not in lists and sets. A unit or "x =" may be there or not. What cannot be decided is
False: RL finds every false "right". Three steps: machinery/notation.py writes an answer in one way, `shape`
takes it apart (lists, intervals, matrices, equations ..), and `same` compares the parts, which are words or
formulas (machinery/formula.py). A hostile answer may take long: call it in a process that can be killed.
"""

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

from machinery import notation
from machinery.notation import as_gold, bracketed, cut, differ, measured, normalise, readable, split, units

# ---- how an answer is built --------------------------------------------------------------------------------

@lru_cache(4096)
def shape(s: str) -> tuple[str, list[str]]:
    r"""How a normalised answer is built: its kind and its parts.

    >>> shape("x=2,x=3"), shape("[0,2)"), shape("0<x\\le 2"), shape("5")
    (('named', ['x', '2,3']), ('[)', ['0', '2']), ('named', ['x', '(0,2]']), ('value', ['5']))
    """
    if s.startswith("\\approx"):
        return "group", [s.removeprefix("\\approx").strip()]
    if match := re.fullmatch(r'"([^"]*[,;][^"]*)"', s):  # \text{A, B}
        s = ",".join(f'"{word.strip()}"' for word in re.split("[,;]", match[1]) if word.strip())
    for kind, build in (("item", _list), ("cell", lambda cells: ("row", cells))):
        parts, signs = cut(s, kind)
        if signs:
            return build(parts) if all(parts) else ("nothing", parts)
    if signs := notation.PLUS_OR_MINUS.findall(s):
        if len(signs) > 1 and all(signs):
            return "nothing", []  # two values, or four?
        values = notation.PLUS_OR_MINUS.sub(lambda m: "+" if m[1] else "-", s)
        return _list([values, notation.PLUS_OR_MINUS.sub(lambda m: "-" if m[1] else "+", s)])
    match = re.fullmatch(r"(.+?)\\(in|ne)(?![a-z])(.+)", s)
    if match and notation.UNKNOWN.fullmatch(match[1]):
        value = match[3].strip()
        return "named", [match[1], value if match[2] == "in" else rf"\mathbb{{R}}\setminus\{{{value}\}}"]
    for kind, build in (("equal", _equation), ("order", _inequality)):
        sides, signs = cut(s, kind)
        if signs and all(sides):
            return build(sides, signs)
    if around := bracketed(s):
        opening, inside, closing = around
        items = split(inside, "item")
        if notation.MATRIX.fullmatch(opening) and closing == opening.replace("begin", "end"):
            return "matrix", split(inside, "row")
        if opening == "\\{" and inside:
            return _set(inside)
        if len(items) > 1 and opening in "([":
            return opening + closing, items
        if opening + closing in ("()", "{}") or inside.startswith("\\begin"):
            return "group", [inside]
    if match := notation.REALS.fullmatch(s):
        return _line_without(split(match["without"] or "", "item"))
    if measured(s)[1]:
        return "group", [measured(s)[0]]
    match = notation.BASE.fullmatch(s)
    if match and re.search(r"\d", match[2]):
        return "base", [match[1] + re.sub(r"^0+(?=\w)", "", match[2]), match[3] or match[4]]
    parts, colons = cut(s, "colon")
    return ("ratio", parts) if colons and all(parts) else ("value", [s])


def _set(inside: str) -> tuple[str, list[str]]:
    """{1, 2} and {x | x > 2} as what is in them; {x in Z | x > 2}, {2x | x > 2}, {{1}} as they are."""
    if match := notation.BUILDER.fullmatch(inside):
        kind, parts = shape(match["condition"])
        items = [shape(part) for part in parts] if kind == "list" else [(kind, parts)]
        if all(kind == "named" and parts[0] == match["name"] for kind, parts in items):
            return "group", [match["condition"]]
    own = ":" in inside or inside.count("|") % 2 or re.match(r"\\(?:emptyset|begin|\{)", inside)
    return ("set" if own else "group"), [inside]


def _list(parts: list[str]) -> tuple[str, list[str]]:
    """Items without order; x=2,x=3 and x=2,3 are values of x."""
    items, names, values = [], [], []
    for part in parts:
        kind, inner = shape(part)
        names.append(inner[0] if kind == "named" else "")
        values.append(inner[1] if kind == "named" else part)
        while kind == "group":
            kind, inner = shape(inner[0])
        items += inner if kind == "list" else [part]
    if names[0] and (set(names) == {names[0]} or set(names[1:]) == {""}):
        return "named", [names[0], ",".join(values)]
    return "list", items


def _equation(sides: list[str], signs: list[str]) -> tuple[str, list[str]]:
    r"""A named value (x=5, x=10/2=5), a value (10/2=5, 2\pi\approx6.28), or what is still to be solved."""
    values, links, name = list(sides), list(signs), ""
    while len(values) > 1 and notation.NAME.fullmatch(values[0]):
        name = name or values[0]
        del values[0], links[0]
    if not name and len(values) > 1 and notation.NAME.fullmatch(values[-1]):
        name = values.pop()
        links.pop()
    for (left, right), link in zip(pairwise(values), links):
        if not (_follows(left, right) if link == "=" else _rounds(left, right)):
            return ("equation" if signs == ["="] else "nothing"), sides
    return ("named", [name, values[0]]) if name else ("group", [values[0]])


def _follows(left: str, right: str) -> bool:
    """Whether left = right is true; 0.56 = 56% is."""
    body, unit = measured(right)
    return same(right, left, {}) or ("percent" in unit and same(rf"\frac{{{body}}}{{100}}", left, {}))


def _rounds(left: str, right: str) -> bool:
    """Whether the decimal on the right is what is on the left, rounded or cut at its last digit."""
    from machinery import formula

    exact, decimal = formula.read(measured(left)[0]), formula.read(measured(right)[0])
    if exact is None or decimal is None or exact.free_symbols or not decimal.is_Rational:
        return False
    places = len(measured(right)[0].partition(".")[2])
    missing = (exact * decimal / abs(decimal or 1) - abs(decimal)).evalf(30) * 10**places
    return bool(missing.is_real and -0.5 <= missing < 1)


def _inequality(sides: list[str], signs: list[str]) -> tuple[str, list[str]]:
    """The interval that an inequality of one name says; of all else the sides, smaller ones first."""
    if all(sign in (">", r"\ge") for sign in signs):
        sides, signs = sides[::-1], [{">": "<"}.get(sign, r"\le") for sign in signs[::-1]]
    unknown = [i for i, side in enumerate(sides) if notation.UNKNOWN.fullmatch(side)]
    at = 1 if len(sides) == 3 else next(iter(unknown), None)
    if at not in unknown or len(sides) > 3 or {">", r"\ge"} & set(signs):
        return " ".join(["order", *signs]), sides
    name = sides[at]
    low, left = (sides[at - 1], signs[at - 1]) if at > 0 else (r"-\infty", "<")
    high, right = (sides[at + 1], signs[at]) if at < len(sides) - 1 else (r"\infty", "<")
    if name.startswith("-"):
        minus = {r"\infty": r"-\infty", r"-\infty": r"\infty"}
        low, high = minus.get(high, f"-({high})"), minus.get(low, f"-({low})")
        name, left, right = name[1:], right, left
    opening, closing = "(" if left == "<" else "[", ")" if right == "<" else "]"
    return "named", [name, f"{opening}{low},{high}{closing}"]


def _line_without(gaps: list[str]) -> tuple[str, list[str]]:
    """The intervals of the real line without these points."""
    from machinery import formula

    values = {gap: formula.read(gap) for gap in gaps}
    if len(gaps) > 1 and not all(value is not None and value.is_real for value in values.values()):
        return "nothing", gaps
    if len(gaps) > 1:
        gaps = sorted(gaps, key=lambda gap: values[gap].evalf(30))
    ends = [r"-\infty", *gaps, r"\infty"]
    return ("list", [f"({low},{high})" for low, high in pairwise(ends)]) if gaps else ("()", ends)


# ---- comparing ---------------------------------------------------------------------------------------------

WORDS = re.compile(
    r'"|^(?:[A-Za-z]{4,}|[A-Z]{2,}|[A-E]|[Yy]es|[Nn]o|[Oo]dd)$|(?<![\\A-Za-z])[A-Za-z]{2,} [A-Za-z]{2,}'
)  # not products of variables
NUMBER = re.compile(r"-?\d{1,50}(?:\.\d{1,50})?")


def same(a: str, g: str, meta: dict) -> bool:
    """Whether a normalised answer is the same as a normalised gold."""
    if re.sub(r"(?<!\d) | (?!\d)", "", a) == re.sub(r"(?<!\d) | (?!\d)", "", g):
        return a != ""
    g = as_gold(g)
    unit, gold_unit = measured(a)[1], measured(g)[1] or meta.get("unit", "")
    if differ(unit, gold_unit):
        return False
    (kind, parts), (gold_kind, gold_parts) = shape(a), shape(g)
    if {"am", "pm"} & {*units(unit), *units(gold_unit)} and ":" in a + g and "named" not in (kind, gold_kind):
        return measured(a)[0].lstrip("0") == measured(g)[0].lstrip("0")  # 3:15 p.m. is no ratio
    if kind == "group" or gold_kind == "group":
        if unit + gold_unit and '"' not in unit + gold_unit and _same_value(a, g, meta):
            return True  # 2 m may be twice m
        return same(parts[0] if kind == "group" else a, gold_parts[0] if gold_kind == "group" else g, meta)
    if kind in ("named", "equation") and gold_kind in ("named", "equation"):
        if parts[0] == gold_parts[0]:
            return same(parts[1], gold_parts[1], meta)
        # 2y=4x is y=2x; but 2x=4, which the question may have said, is not x=2.
        return _same_relation(parts, gold_parts, "=", fewest=2 if gold_kind == "named" else 1)
    if kind == "named" or gold_kind == "named":
        return same(parts[1] if kind == "named" else a, gold_parts[1] if gold_kind == "named" else g, meta)
    if {kind, gold_kind} == {"ratio", "value"}:  # 3:4 is three quarters
        a, g = (_quotient(one) if len(one) == 2 else one[0] for one in (parts, gold_parts))
        return {len(parts), len(gold_parts)} == {1, 2} and _same_value(a, g, meta)
    if kind != gold_kind or kind == "nothing" or len(parts) != len(gold_parts) or not parts:
        return False
    if kind == "value":
        return _same_value(parts[0], gold_parts[0], meta)
    if kind == "list":
        return _same_items(parts, gold_parts, meta)
    if kind in ("order <", r"order \le") and _same_relation(parts, gold_parts, "<", fewest=1):
        return True
    if kind == "ratio":
        if len(gold_parts[-1]) == 2:  # 2:30 may be a time, which is not 1:15
            return ":".join(parts).lstrip("0") == ":".join(gold_parts).lstrip("0")
        pairs = zip(pairwise(parts), pairwise(gold_parts))
        return all(_same_value(_quotient(x), _quotient(y), meta) for x, y in pairs)
    return all(same(x, y, meta) for x, y in zip(parts, gold_parts))


def _quotient(pair) -> str:
    return r"\frac{{{}}}{{{}}}".format(*pair)


def _same_items(items: list[str], gold_items: list[str], meta: dict) -> bool:
    """Lists and unions, without order; bare values keep the order in which a gold has several names."""
    if all(shape(gold)[0] == "named" and shape(item)[0] != "named" for item, gold in zip(items, gold_items)):
        return all(same(item, gold, meta) for item, gold in zip(items, gold_items))
    left = list(gold_items)
    for item in items:  # equality is transitive: the first partner that fits is as good as any other
        partner = next((i for i, gold in enumerate(left) if same(item, gold, meta)), None)
        if partner is None:
            return False
        del left[partner]
    return True


def _same_value(a: str, g: str, meta: dict) -> bool:
    """Whether two answers without structure are the same: words, or formulas."""
    from machinery import formula  # sympy is slow to import

    if WORDS.search(a) or WORDS.search(g):
        word, gold_word = (re.sub(r'[" ()]|\.(?!\d)', "", s).lower() for s in (a, g))
        return word == gold_word != "" and WORDS.search(g) is not None
    x, y = formula.read(a), formula.read(g)
    if x is None or y is None:
        return False
    if formula.equal(x, y):
        return True
    if not meta or x.free_symbols or y.free_symbols:
        return False
    numbers = [Fraction(str(n)) for n in (x.evalf(20), y.evalf(20)) if n.is_Float or n.is_Rational]
    return len(numbers) == 2 and close(*numbers, meta)


def _same_relation(parts: list[str], gold_parts: list[str], sign: str, fewest: int) -> bool:
    """Whether two equations or inequalities, of at least so many symbols, are the same up to a factor."""
    from machinery import formula

    sides = [formula.read(side) for side in parts + gold_parts]
    if None in sides:
        return False
    a, g = sides[0] - sides[1], sides[2] - sides[3]
    return len(g.free_symbols) >= fewest and formula.proportional(a, g, positive=sign == "<")


def close(a: Fraction, b: Fraction, meta: dict) -> bool:
    """Equal, or within `meta`'s "rel_tol" (SciBench) or "abs_tol" (OlympiadBench); others set none."""
    return abs(a - b) <= max(Fraction(meta.get("rel_tol", 0)) * abs(b), Fraction(str(meta.get("abs_tol", 0))))


def math_equal(answer: str, gold: str, meta: dict | None = None) -> bool:
    """Whether two answers are the same. `meta`: "rel_tol", "abs_tol", "unit" (may have a power of ten)."""
    meta, answer, gold = meta or {}, answer.strip(), gold.strip()
    if "unit" not in meta and NUMBER.fullmatch(answer) and NUMBER.fullmatch(gold):
        return close(Fraction(answer), Fraction(gold), meta)
    if len(answer) > 2000 or len(gold) > 2000:
        return answer == gold
    a, g = normalise(answer), normalise(gold)
    if not readable(a) or not readable(g):
        return False
    powers = re.findall(r"10\^(?:\{-?\d+\}|\d+)", meta.get("unit", ""))
    if "unit" in meta:
        meta = {**meta, "unit": normalise(re.sub(r"10\^(?:\{-?\d+\}|\d+)", "", meta["unit"]))}
    golds = [g, *(rf"{g}\times {power}" for power in powers)]
    try:
        return any(same(a, one, meta) for one in golds)
    except RecursionError:  # undecided
        return False


# ---- what an answer to a gold looks like -------------------------------------------------------------------

# Invisible characters, HTML, doubled backslashes, the quotes of Python and JSON.
DAMAGED = re.compile(r"""&#?\w+;|</?\w+/?>|(?<!\\)\\\\(?:[A-Za-z]{2}|[%$])|^b?['"]|[\[{(,:] *['"]""")
SEPARATORS = {"list": ", ", "equation": " = ", "ratio": ":", "row": " & "}
NAMED_SETS = {r"\infty", r"-\infty", r"\emptyset", r"\mathbb{Z}", r"\mathbb{Q}", r"\mathbb{N}", r"\mathbb{C}"}


def plain(gold: str) -> str | None:
    r"""A simple way to write the gold's value, which `math_equal` must find right; None where there is none.

    >>> plain(r"\$32,\!348"), plain(r"x=\frac12"), plain(r"\text{(B)}"), plain("['34']"), plain("&lt;5")
    ('32348', '1/2', 'B', None, None)
    """
    if NUMBER.fullmatch(gold.strip()):
        return gold.strip()
    hidden = any(unicodedata.category(char) in ("Cf", "Cs") or char == "\0" for char in gold)
    s = normalise(gold[:2001])
    return None if hidden or DAMAGED.search(gold) or not readable(s) else _plain(s)


def _plain(s: str) -> str | None:
    s = as_gold(s)
    kind, parts = shape(s)
    if kind == "set":
        return s
    if kind in ("group", "named"):
        return _plain(parts[-1])
    if kind in ("value", "base"):
        return _plain_value(parts[0]) if kind == "value" else "{}_{{{}}}".format(*parts)
    written = [_plain(part) for part in parts]
    if None in written or kind == "nothing":
        return None
    if kind == "matrix":
        return r"\begin{pmatrix} " + r" \\ ".join(written) + r" \end{pmatrix}"
    if kind.startswith("order"):
        return f" {kind.split()[-1]} ".join(written)
    if kind in SEPARATORS:
        return SEPARATORS[kind].join(parts if kind == "ratio" else written)  # 05:00, not 5:0
    return kind[0] + ", ".join(written) + kind[1]


def _plain_value(s: str) -> str | None:
    """A word or up to four, a name, or a formula as sympy writes it."""
    from machinery import formula

    if WORDS.search(s):
        words = re.sub(r'[".()]', "", s).split()
        phrase = len(words) <= 4 and re.fullmatch(r"[\w-]+", "".join(words))
        sentence = {"is", "are", "the", "answer", "equals"} & {word.lower() for word in words}
        return " ".join(words) if phrase and not sentence else None
    value = formula.read(s)
    if value is None:
        return s if s in NAMED_SETS or notation.NAME.fullmatch(s) else None
    written = formula.write(value)
    return written if len(written) <= 300 else s
