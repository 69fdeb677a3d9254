r"""When two mathematical answers are the same.

    math_equal(r"\frac{1}{2}", "0.5")       # True
    plain(r"\$32,\!348")                    # "32348": a way to write it; None for what no answer can be

The same mathematical object counts, in whatever form, and nothing is ever rounded. Order counts in tuples,
intervals and ratios, not in lists and sets. A unit or "x =" may be there or not. What cannot be decided is
False: RL finds every false "right". Three steps: `normalise` writes an answer in one way, `shape` takes it
apart (lists, intervals, matrices, equations ..), and `same` compares the parts: words, or formulas
(machinery/formula.py). A hostile answer may take long: call it in a process that can be killed.
"""

import re
import unicodedata
from collections import Counter
from fractions import Fraction
from functools import lru_cache

# ---- one way of writing ------------------------------------------------------------------------------------

SYMBOLS = dict(zip("−–×·⋅÷±∓≤⩽≥⩾≠∞∪∩∈∅√∛∜°∘ℝ⟨⟩€£。，′’⁄≈∖", (
    r"-|-|\times |\times |\times |/|\pm |\mp |\le |\le |\ge |\ge |\ne |\infty |\cup |\cap |\in |\emptyset |"
    r"\surd |\surd[3]|\surd[4]|^\circ |\circ |\mathbb{R}|(|)|\text{euro}|\text{gbp}|.|,|'|'|/|\approx |\setminus "
).split("|")))  # fmt: skip
SYNONYMS = dict(pair.split(":") for pair in (
    r"cdot:\times ast:\times leq:\le leqslant:\le geq:\ge geqslant:\ge neq:\ne lt:< gt:> div:/ simeq:\approx "
    r"langle:( rangle:) lbrace:\{ rbrace:\} varnothing:\emptyset backslash:\setminus lg:\log_{10} Reals:\mathbb{R} "
    r"dfrac:\frac tfrac:\frac cfrac:\frac sfrac:\frac nicefrac:\frac flatfrac:\frac dbinom:\binom tbinom:\binom "
    r"bar:\overline imath:i jmath:j degrees:\degree lvert:| rvert:| vert:| mid:|"
).split())  # fmt: skip
LAYOUT = (
    "left. right. left right big Big bigg Bigg bigl bigr Bigl Bigr displaystyle textstyle tiny small normalsize large "
    "Large LARGE huge Huge therefore limits underline ensuremath"
).split()
FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|csc|ln|log|exp"
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
BASES = dict(zip("two three four five six seven eight nine ten eleven twelve sixteen".split(), [*range(2, 13), 16]))
WORDS = r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|[mh]box|math(?:rm|sf|it|tt|cal|normal|bf)|operatorname\*?|emph|boldsymbol)"


def _ascii(match: re.Match) -> str:
    """A character in ASCII LaTeX where there is a way: ½, ², α; Chinese words as they are."""
    char = match[0]
    if char in SYMBOLS:
        return SYMBOLS[char]
    kind, simple = unicodedata.decomposition(char).split(" ")[0], unicodedata.normalize("NFKC", char)
    if kind == "<fraction>":
        return "\\frac{{{}}}{{{}}}".format(*simple.split("⁄"))
    if kind in ("<super>", "<sub>"):
        return f"{'^' if kind == '<super>' else '_'}{{{SYMBOLS.get(simple, simple)}}}"
    greek = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", unicodedata.name(char, ""))
    if greek is None:
        return simple
    return f"\\{greek[2].lower() if greek[1] == 'SMALL' else greek[2].capitalize()} "


def _words(match: re.Match) -> str:
    r"""\text{cm} as "cm"; numbers, formulas, function names, i and e as they are."""
    words = match[1].strip()
    if re.fullmatch(FUNCTIONS + "|sec", words):
        return f"\\{words} "
    return words if re.fullmatch(r"[^A-Za-z]*|[ei]|.*\\[a-z].*", words) else f' "{words}" '


def _thousands(match: re.Match) -> str:
    """1,234 as 1234. (100,200) stays a pair; (1,000) is a number, since no one writes 000 for nought."""
    pair = match[1] and match[2] and ",0" not in match[0]
    return match[0] if pair else match[0].replace(",", "")


REWRITES = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r"(?<=\d)(?:, ?\\!|\{,\}|\\,|\\!,) *(?=\d{3}(?!\d))", ""),  # 1{,}000 and 1,\!000 have no comma of a list
    (r"(\\\{|[(\[])?(?<![\w.,^/])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])(\\\}|[)\]])?", _thousands),
    (r"^\s*([*_]+)([^*_]+)\1\s*$", r"\2"),  # **12** of Markdown
    (r"\\([A-Za-z]+\.?)(?![A-Za-z])", lambda m: "" if m[1] in LAYOUT else m[0]),
    (r"(?<!\\)\\(?:[()\[\]!]|\s*$)|\\\\(?= *\\end)", ""),
    (r"(?<!\\)\\[,;:> ]|\\q?quad(?![a-z])|\\[hv]space\*?\{[^{}]*\}|~|\s+", " "),
    (r"\\(?:text)?color *\{[^{}]*\}|\\phantom *(?:\{[^{}]*\}|.)", ""),
    (r"(?<![a-z])\{ *([-+,]) *\}", r"\1"),
    (r"(^|[(\[,=]) *\+", r"\1"),
    (r"\\([A-Za-z]+)", lambda m: SYNONYMS.get(m[1], m[0]) + " " * (m[1] in SYNONYMS)),
    (r"\\begin *\{array\} *\{[^{}]*\}", r"\\begin{matrix}"),
    (r"\\end *\{array\}", r"\\end{matrix}"),
    (r"\{([^{}]*)\\over(?![a-z])([^{}]*)\}", r"\\frac{\1}{\2}"),
    (r"\{([^{}]*)\\choose(?![a-z])([^{}]*)\}", r"\\binom{\1}{\2}"),
    (r"\\dot *\{?(\d)\}?(?:(\d*)\\dot *\{?(\d)\}?)?", r"\\overline{\1\2\3}"),  # 0.\dot3
    (r"\\surd(\[\d\])? *(\d+)", r"\\sqrt\1{\2}"),  # √12 is not \sqrt12
    (r"\\surd", r"\\sqrt"),
    (r"\\math(?:bf|bb) *(?:\{R\}|R(?![a-z]))", r"\\mathbb{R}"),
    (r"\\(?:vec|hat|math(?:bf|rm)|boldsymbol|bm|overrightarrow)(?:\{([a-z])\}| +([a-z])(?![a-z]))", r"\1\2"),
    (r"\\(?:vec|hat|overrightarrow)\{([a-z])\}", r"\1"),
    (r"\*\*", "^"),
    (r"\*|\\times *", r"\\times "),
    (r"<=", r"\\le "), (r">=", r"\\ge "), (r"!=", r"\\ne "),
    (r"\\\{ *\\\}", r"\\emptyset "),
    (r"(?<=\d)[eE]([-+]?\d{1,3})(?![\d.])", r"\\times 10^{\1}"),
    # words, and signs that are words
    (r"\{ *\\(?:rm|bf|it|cal) ([^{}]*)\}", r"\\text{\1}"),
    (rf"{WORDS} *\{{([^{{}}]*)\}}", _words),
    (r'"\(([^"()]*)\)"', r'"\1"'),  # \text{(B)}
    (r'"(\d[\d:., ]*)([A-Za-z][^"\d]*)"', r'\1 "\2"'),  # \text{4:30 p.m.}
    (r"\\\$", ' "dollar" '),
    (r"\$", ""),
    (r"\\?%", ' "percent" '),
    (r"\^ *(?:\{ *\\circ *\}|\\circ(?![a-z]))", r"\\degree "),
    (r"([^\x00-\x7f]+)", r' "\1" '),
    (rf'(?<=\d) *("?) *({"|".join(SCALES)})s?(?![a-z]) *', lambda m: rf"\times 10^{{{SCALES[m[2]]}}} {m[1]}"),
    (rf'_ *\{{? *"?({"|".join(BASES)})"? *\}}?', lambda m: f"_{{{BASES[m[1]]}}}"),  # 101_{\text{two}}
    (rf"(?<![\\a-zA-Z])({FUNCTIONS}|pi|sqrt|infty)(?![a-zA-Z])", r"\\\1 "),  # sin(x)
    (r"(?<![\\a-zA-Z])inf(?:inity)?(?![a-zA-Z])", r"\\infty "),
    (r"\\log *_ *(?:e|\{e\})", r"\\ln "),
    (r" *\(([a-z] *\\in[^()]*)\)$", r",\1"),  # k\pi (k\in\mathbb{Z})
    # A space stays where it keeps two numbers, names or a unit apart: "1 1/2" is not 11/2.
    (r'(?<![\w.,^/)}"])(?<![\w.,^/)}"] )[1-9]\d{0,2}(?: \d{3})+(?! ?[\d/\\(])', lambda m: m[0].replace(" ", "")),
    (r' +|""', " "),
    (r"(?<!\w) | (?!\w)", ""),
    (r"([\^_])\{(\w)\}(?!\d)", r"\1\2"),
    (r"(?<!\.)[.,;:]$", ""),
)]  # fmt: skip


@lru_cache(4096)
def normalise(answer: str) -> str:
    r"""An answer in one way of writing: ASCII, no layout, one name for one thing, words and units in quotes.

    >>> normalise(r"$\dfrac12$. "), normalise(r"~42 \text{ cm}^2"), normalise("2½ %")
    ('\\frac12', '42"cm"^2', '2\\frac{1}{2}"percent"')
    """
    answer = answer.replace('"', "")
    if not answer.isascii():
        answer = re.sub(r"\}([\^_])\{", "", re.sub(r"[^\x00-\x7f]", _ascii, answer))  # x¹² has one power
    for pattern, replacement in REWRITES:
        answer = pattern.sub(replacement, answer)
    return answer.strip()


# ---- how an answer is built --------------------------------------------------------------------------------

TOKEN = re.compile(r"""
    (?P<open> \\\{ | \\begin\{\w+\} | [(\[{]) | (?P<close> \\\} | \\end\{\w+\} | [)\]}])
  | (?P<item> [,;] | \\cup(?![a-z]) | "[,\ ]*(?:and|or)[,\ ]*" | (?<![a-z\\])(?:and|or)(?![a-z]))
  | (?P<order> \\[lg]e(?![a-z]) | [<>]) | (?P<equal> = | \\approx(?![a-z]))
  | (?P<colon> :) | (?P<row> \\\\) | (?P<cell> &) | "[^"]*" | \\[a-zA-Z]+ | \\.
""", re.VERBOSE)  # fmt: skip
# What may stand before "=": x, x_1, "Area", area, (x,y), f(3), P(A), f^{-1}(x), AB, |AB|, |z|, \angle ABC,
# \overline{AB}, \sin A, \frac{NO}{BO}, A:B. Not what is still to be solved: 2x, -x, x^2, |x|, x(x+1), \sin x.
INDEX = r"(?:_\{[^{}]*\}|_\w)?'*"
SIDE = rf"(?:[A-Z]{INDEX}\ ?){{1,4}}"
LETTER = rf"(?:[A-Za-z]|\\(?!pi|infty|emptyset|sqrt|frac)[a-zA-Z]+){INDEX}"
NAME = re.compile(rf"""
    {LETTER} | "[^"]+" | [A-Za-z][a-z]{{3,}} | \(?{LETTER}(?:,{LETTER})+\)? | {SIDE}(?:\^(?:\{{-1\}}|T))?
  | (?P<f>[A-Zfghpqr] | \\(?!sqrt)[a-zA-Z]+ | "[^"]+"){INDEX}(?:\^\{{-1\}})?\((?:(?!(?P=f))[^()] | \([^()]*\))*\)
  | \|(?:{SIDE}|[abuvwz])\| | m?\\(?:angle|triangle)\ ?{SIDE} | \\overline\{{{SIDE}\}} | \[{SIDE}\]
  | \\(?:sin|cos|tan|cot|sec|csc)(?:\^2)?\ ?(?:[A-Z\d(){{}}\ ] | \\[a-z]+)+
  | \\frac\{{{SIDE}\}}\{{{SIDE}\}} | \\frac\{{d[a-z]\}}\{{d[a-z]\}} | {SIDE}[:/]{SIDE}
""", re.VERBOSE)  # fmt: skip
UNKNOWN = re.compile(rf"-?{LETTER}(?:\([a-z](?:,[a-z])*\))?")  # what an inequality may be about
UNITS = {alias: words.split()[0] for words in (
    "mm millimeter millimetre", "cm centimeter centimetre", "m meter metre", "km kilometer kilometre",
    "in inch inche", "ft foot feet", "yd yard", "mi mile", "g gram gm", "kg kilogram", "mg milligram", "lb pound",
    "oz ounce", "ml milliliter", "l liter litre", "gal gallon", "s sec second", "min minute", "hr hour h", "day",
    "week", "month", "yr year", "cent", "dollar usd", "euro", "gbp", "percent percentage", "degree deg",
    "c celsius", "f fahrenheit", "rad radian", "am", "pm", "n newton", "j joule", "k kelvin", "w watt", "v volt",
    "mol mole", "hz hertz", "acre", "unit",
) for alias in words.split()}  # fmt: skip
KNOWN = "|".join(sorted((unit for unit in UNITS if len(unit) > 1), key=len, reverse=True)) + "|mph|kph"
UNIT = re.compile(rf"""
    (?:(?:/|\\times)?\ ?
       (?: "[^"]*" | \\degree | (?<![A-Za-z\\])(?:(?:{KNOWN})s?|per|[A-Za-z]{{4,}}|AM|PM)(?![A-Za-z])
         | (?:(?<=\d\ )|(?<=[a-z"]/)|(?<=\\degree\ ))[mgshLJKNWVCF](?![A-Za-z])
         | \\frac\{{"[^"]*"\}}\{{"[^"]*"(?:\^-?\d|\^\{{-?\d\}})?\}} )
       (?:\^-?\d|\^\{{-?\d\}})?\ ?
    )+$""", re.VERBOSE)  # fmt: skip
# Words behind a number that make it another one, or none for certain.
NO_UNIT = re.compile(
    r"\b(?:(?i:or|and|not|no|more|less|least|most|than|to|times|plus|minus|over|above|below|under|between|half"
    r"|halves|thirds?|quarters?|\w*(?:four|fif|six|seven|eigh|nin|ten|hundred|thousand)ths?|squared|cubed"
    r"|factorial|root|base|mod\w*|hundreds?|thousands?|\w+illions?|dozens?|score|pairs?|negative|approximately"
    r"|about)|[abcdefi-knopqrtu-z])\b|[〇零一二三四五六七八九十百千万亿半两或和负]"
)


def cut(s: str, kind: str) -> tuple[list[str], list[str]]:
    """The parts of `s` between the tokens of this kind that are in no bracket, and these tokens."""
    parts, found, depth, start = [], [], 0, 0
    for token in TOKEN.finditer(s):
        depth += (token.lastgroup == "open") - (token.lastgroup == "close")
        if depth == 0 and token.lastgroup == kind:
            parts.append(s[start : token.start()].strip())
            found.append(token[0].strip())
            start = token.end()
    return [*parts, s[start:].strip()], found


def split(s: str, kind: str) -> list[str]:
    return [part for part in cut(s, kind)[0] if part]


def bracketed(s: str) -> tuple[str, str, str] | None:
    """(opening, inside, closing) where one pair of brackets is around all of `s`."""
    depth, first = 0, None
    for token in TOKEN.finditer(s):
        depth += (token.lastgroup == "open") - (token.lastgroup == "close")
        first = first or token
        if depth <= 0:
            break
    if first is None or first.start() or depth or token.end() < len(s) or token.lastgroup != "close":
        return None
    return first[0], s[first.end() : token.start()].strip(), token[0]


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
    if len(split(s, "item")) > 1:
        return _list(split(s, "item"))
    if "\\pm" in s or "\\mp" in s:
        upper = re.sub(r"\\([pm])[pm] ?", lambda m: "-" if m[1] == "m" else "+", s)
        lower = re.sub(r"\\([pm])[pm] ?", lambda m: "+" if m[1] == "m" else "-", s)
        return _list([upper, lower])
    match = re.fullmatch(r"(.+?)\\(in|ne)(?![a-z])(.+)", s)
    if match and UNKNOWN.fullmatch(match[1]):
        value = match[3].strip()
        return "named", [match[1], value if match[2] == "in" else rf"(-\infty,{value}),({value},\infty)"]
    sides, signs = cut(s, "equal")
    if signs and all(sides):
        return _equation(sides, signs)
    sides, signs = cut(s, "order")
    if signs and all(sides):
        return _inequality(sides, signs)
    if around := bracketed(s):
        opening, inside, closing = around
        items = split(inside, "item")
        if re.fullmatch(r"\\begin\{[pb]?matrix\}", opening) and closing == opening.replace("begin", "end"):
            rows = [split(row, "cell") for row in split(inside, "row")]
            return " ".join(["matrix", *(str(len(row)) for row in rows)]), [cell for row in rows for cell in row]
        if opening == "\\{" and inside:
            return "group", [re.split(r"[:|]", inside, maxsplit=1)[-1]]  # {x | x > 2}
        if len(items) > 1 and opening in "([":
            return opening + closing, items
        if inside and (opening + closing in ("()", "{}") or (opening == "[" and inside.startswith("\\begin"))):
            return "group", [inside]
    if match := re.fullmatch(r"(?:\\mathbb\{R\}|\(-\\infty,\\infty\))(?:(?:\\setminus ?|-)\\\{(.+)\\\})?", s):
        return _line_without(split(match[1] or "", "item"))
    if (body := measured(s)[0]) != s:
        return "group", [body]
    if match := re.fullmatch(r'(-?)"?0*([0-9A-Z.]*\d[0-9A-Z.]*)"?_(?:(\d)|\{(\d+)\})', s):
        return "base", [match[1] + match[2], match[3] or match[4]]
    parts, colons = cut(s, "colon")
    return ("ratio", parts) if colons and all(parts) else ("value", [s])


def _list(parts: list[str]) -> tuple[str, list[str]]:
    """Items without order; x=2,x=3 and x=2,3 as the values of x."""
    items, names = [], []
    for part in parts:
        kind, inner = shape(part)
        names.append(inner[0] if kind == "named" else "")
        while kind == "group":
            kind, inner = shape(inner[0])
        items += inner if kind == "list" else [part]
    if names[0] and (set(names) == {names[0]} or set(names[1:]) == {""}):
        values = [shape(part)[1][1] if name else part for name, part in zip(names, parts)]
        return "named", [names[0], ",".join(values)]
    return "list", items


def _equation(sides: list[str], signs: list[str]) -> tuple[str, list[str]]:
    r"""A named value (x=5, x=10/2=5), a value (10/2=5, 2\pi\approx6.28), or what is still to be solved."""
    values, links, name = list(sides), list(signs), None
    while len(values) > 1 and NAME.fullmatch(values[0]):
        name = name or values[0]
        values.pop(0), links.pop(0)
    if name is None and len(values) > 1 and NAME.fullmatch(values[-1]):
        name = values.pop()
        links.pop()
    for left, right, link in zip(values, values[1:], links):
        if not (follows(left, right) if link == "=" else rounds(left, right)):
            return ("equation" if signs == ["="] else "nothing"), sides
    return ("named", [name, values[0]]) if name else ("group", [values[0]])


def follows(left: str, right: str) -> bool:
    """Whether left = right in a chain; 0.56 = 56% too."""
    body, unit = measured(right)
    return same(left, right, {}) or (unit == '"percent"' and same(left, rf"\frac{{{body}}}{{100}}", {}))


def rounds(left: str, right: str) -> bool:
    """Whether the decimal on the right is what is on the left, to its last digit."""
    from machinery import formula

    exact, decimal = (formula.read(measured(side)[0]) for side in (left, right))
    if exact is None or decimal is None or exact.free_symbols or not decimal.is_Rational:
        return False
    places = len(measured(right)[0].partition(".")[2])
    return abs(exact - decimal).evalf(30) <= Fraction(1, 10**places)


def _inequality(sides: list[str], signs: list[str]) -> tuple[str, list[str]]:
    """The interval that an inequality of one name says; of all else the sides, smaller ones first."""
    if all(sign in (">", r"\ge") for sign in signs):
        sides, signs = sides[::-1], [{">": "<"}.get(sign, r"\le") for sign in signs[::-1]]
    unknown = [i for i, side in enumerate(sides) if UNKNOWN.fullmatch(side)]
    at = 1 if len(sides) == 3 else unknown[0] if unknown else None
    if at not in unknown or len(sides) > 3 or set(signs) & {">", r"\ge"}:
        return "order " + " ".join(signs), sides
    low, left = (sides[at - 1], signs[at - 1]) if at > 0 else (r"-\infty", "<")
    high, right = (sides[at + 1], signs[at]) if at < len(sides) - 1 else (r"\infty", "<")
    name = sides[at]
    if name.startswith("-"):
        minus = {r"\infty": r"-\infty", r"-\infty": r"\infty"}
        name, low, high, left, right = name[1:], minus.get(high, f"-({high})"), minus.get(low, f"-({low})"), right, left
    opening, closing = "(" if left == "<" else "[", ")" if right == "<" else "]"
    return "named", [name, f"{opening}{low},{high}{closing}"]


def _line_without(points: list[str]) -> tuple[str, list[str]]:
    """The intervals of the real line without these points."""
    from machinery import formula

    values = {point: formula.read(point) for point in points}
    if any(value is None or not value.is_real for value in values.values()):
        return "nothing", points
    ends = [r"-\infty", *sorted(points, key=lambda point: values[point].evalf(30)), r"\infty"]
    intervals = [f"({low},{high})" for low, high in zip(ends, ends[1:])]
    return ("list", intervals) if points else ("()", ends)


def measured(s: str) -> tuple[str, str]:
    """What stands before a unit, and the unit: ('5', '"cm"^2'); the unit is "" where there is none."""
    if match := re.fullmatch(r'(-?)"(dollar|euro|gbp)"(.+)', s):
        return match[1] + match[3], match[2]
    unit = UNIT.search(s)
    if unit is None or NO_UNIT.search(unit[0].replace(".", "")) or not s[: unit.start()].strip(" -"):
        return s, ""
    body = s[: unit.start()].strip()
    angle = "degree" in unit[0] and re.search(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])", s)
    if angle or not ('"' in unit[0] or re.search(r"[\d)}]$|\\pi$", body)):  # "no solution" has no unit
        return s, ""
    return body, unit[0]


def units(unit: str) -> Counter:
    """The known units in it with their powers: "m/s^2" is {"m": 1, "s": -2}."""
    powers, sign, power, last = Counter(), 1, 1, ""
    unit = unit.lower().replace(".", "").replace("mph", "mi/h").replace("kph", "km/h").replace("}{", "/")
    for word in re.findall(r"[a-z]+|/|-?\d", unit):
        known = UNITS.get(word) or UNITS.get(word.rstrip("s"))
        if word in ("/", "per"):
            sign = -1
        elif word in ("square", "sq", "cubic"):
            power = 3 if word == "cubic" else 2
        elif known:
            powers[known] += sign * power
            last, power = known, 1
        elif word[-1].isdigit():
            powers[last] *= int(word)
    return powers


# ---- comparing ---------------------------------------------------------------------------------------------

NUMBER = re.compile(r"-?\d{1,50}(?:\.\d{1,50})?")
# Words, not products of variables.
WORD = re.compile(
    r'"|^(?:[A-Za-z]{4,}|[A-Z]{2,}|[A-E]|[Yy]es|[Nn]o|[Oo]dd)$|(?<![\\A-Za-z])[A-Za-z]{2,} [A-Za-z]{2,}'
)



def same(a: str, g: str, meta: dict) -> bool:
    """Whether a normalised answer is the same as a normalised gold."""
    if re.sub(r"(?<!\d) | (?!\d)", "", a) == re.sub(r"(?<!\d) | (?!\d)", "", g):
        return a != ""
    (kind, parts), (gold_kind, gold_parts) = shape(a), shape(g)
    unit, gold_unit = units(measured(a)[1]), units(measured(g)[1])
    if unit and gold_unit and unit != gold_unit:
        return False
    if "group" in (kind, gold_kind):
        return same(parts[0] if kind == "group" else a, gold_parts[0] if gold_kind == "group" else g, meta)
    if kind in ("named", "equation") and gold_kind in ("named", "equation"):
        if parts[0] == gold_parts[0]:
            return same(parts[1], gold_parts[1], meta)
        return same_relation(parts, gold_parts, "=", fewest=2 if gold_kind == "named" else 1)
    if gold_kind == "named":
        return same(a, gold_parts[1], meta)
    if kind == "named":
        return same(parts[1], g, meta)
    if {kind, gold_kind} == {"ratio", "value"}:  # 3:4 is three quarters
        a, g = (rf"\frac{{{one[0]}}}{{{one[1]}}}" if len(one) == 2 else one[0] for one in (parts, gold_parts))
        return same_value(a, g, meta)
    if kind != gold_kind or len(parts) != len(gold_parts):
        return False
    if kind == "value":
        return same_value(parts[0], gold_parts[0], meta)
    if kind == "list":
        return same_items(parts, gold_parts, meta)
    if kind in ("order <", r"order \le") and same_relation(parts, gold_parts, "<", fewest=1):
        return True
    if kind == "ratio" and len(gold_parts[-1]) != 2:  # 2:30 may be a time, which is not 1:15
        pairs = zip(parts[1:], gold_parts[1:])
        return all(same_value(rf"\frac{{{parts[0]}}}{{{x}}}", rf"\frac{{{gold_parts[0]}}}{{{y}}}", meta) for x, y in pairs)
    return all(same(x, y, meta) for x, y in zip(parts, gold_parts))


def same_items(items: list[str], gold_items: list[str], meta: dict) -> bool:
    """Lists and unions, without order. Where the gold gives values to several names, bare values keep its order."""
    names = [shape(item)[0] == "named" for item in gold_items]
    if all(names) and not any(shape(item)[0] == "named" for item in items):
        return all(same(x, y, meta) for x, y in zip(items, gold_items))
    left = list(gold_items)
    for item in items:
        partner = next((i for i, other in enumerate(left) if same(item, other, meta)), None)
        if partner is None:
            return False
        del left[partner]
    return True


def same_value(a: str, g: str, meta: dict) -> bool:
    """Whether two answers without structure are the same: words, or formulas."""
    from machinery import formula

    if WORD.search(a) or WORD.search(g):
        words = [re.sub(r'[" .()]', "", s).lower() for s in (a, g)]
        return bool(WORD.search(g)) and words[0] == words[1] != ""
    x, y = formula.read(a), formula.read(g)
    if x is None or y is None:
        return False
    if formula.equal(x, y):
        return True
    if x.free_symbols or y.free_symbols or not meta:
        return False
    numbers = [Fraction(str(value)) for value in (x.evalf(20), y.evalf(20)) if value.is_Float or value.is_Rational]
    return len(numbers) == 2 and close(*numbers, meta)


def same_relation(parts: list[str], gold_parts: list[str], sign: str, fewest: int) -> bool:
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


def readable(s: str) -> bool:
    """Whether it is short enough, and each bracket that opens closes and the other way round."""
    depth = deepest = 0
    for token in TOKEN.finditer(s):
        depth += (token.lastgroup == "open") - (token.lastgroup == "close")
        deepest = max(deepest, depth)
        if depth < 0:
            return False
    return depth == 0 and deepest <= 40


def math_equal(answer: str, gold: str, meta: dict | None = None) -> bool:
    """Whether two answers are the same. `meta`: "rel_tol", "abs_tol", and "unit", which may carry a power of ten."""
    meta, answer, gold = meta or {}, answer.strip(), gold.strip()
    if NUMBER.fullmatch(answer) and NUMBER.fullmatch(gold) and "unit" not in meta:
        return close(Fraction(answer), Fraction(gold), meta)
    if len(answer) > 2000 or len(gold) > 2000:
        return answer == gold
    a, g = normalise(answer), normalise(gold)
    if not readable(a) or not readable(g):
        return False
    scales = re.findall(r"10\^(?:\{-?\d+\}|\d+)", meta.get("unit", ""))
    try:
        return any(same(a, one, meta) for one in (g, *(rf"{g}\times {scale}" for scale in scales)))
    except RecursionError:
        return False


# Golds that no answer can meet: invisible characters, HTML, doubled backslashes, Python's or JSON's quotes.
DAMAGED = re.compile(r"""&#?\w+;|<\w+/?>|(?<!\\)\\\\(?:[A-Za-z]{2}|[%$])|^b?['"]|[\[{(,:] *['"]|['"] *[\]}),]""")


def plain(gold: str) -> str | None:
    r"""A simple way to write the gold's value, which `math_equal` must find right; None for what no answer can be.

    >>> plain(r"\$32,\!348"), plain(r"x=\frac12"), plain(r"\text{(B)}"), plain("['34']"), plain("&lt;5")
    ('32348', '1/2', 'B', None, None)
    """
    if DAMAGED.search(gold) or any(unicodedata.category(char) in ("Cf", "Cc", "Cs") for char in gold.replace("\n", " ")):
        return None
    s = normalise(gold)
    return _plain(s) if readable(s) and len(s) <= 2000 else None


def _plain(s: str) -> str | None:
    from machinery import formula

    kind, parts = shape(s)
    if kind == "group" or kind == "named":
        return _plain(parts[-1])
    if kind == "value":
        if parts[0] in (r"\infty", r"-\infty", r"\emptyset", r"\mathbb{Z}", r"\mathbb{Q}", r"\mathbb{N}", r"\mathbb{C}"):
            return parts[0]
        if WORD.search(parts[0]):
            words = re.sub(r'[".()]', "", parts[0]).split()
            sentence = len(words) > 4 or {"is", "are", "the", "answer", "equals"} & {word.lower() for word in words}
            return None if sentence or not re.fullmatch(r"[\w-]+", "".join(words)) else " ".join(words)
        value = formula.read(parts[0])
        if value is None:
            return parts[0] if NAME.fullmatch(parts[0]) else None
        text = formula.written(value)
        return text if len(text) <= 300 else parts[0]
    if kind == "base":
        return "{}_{{{}}}".format(*parts)
    if kind == "nothing":
        return None
    parts = [_plain(part) for part in parts]
    if None in parts:
        return None
    if kind == "list":
        return ", ".join(parts)
    if kind == "equation":
        return " = ".join(parts)
    if kind == "ratio":
        return ":".join(parts)
    if kind.startswith("order"):
        signs = kind.split()[1:]
        return parts[0] + "".join(f" {sign} {part}" for sign, part in zip(signs, parts[1:]))
    if kind.startswith("matrix"):
        cells = iter(parts)
        rows = [" & ".join(next(cells) for _ in range(int(length))) for length in kind.split()[1:]]
        return r"\begin{pmatrix} " + r" \\ ".join(rows) + r" \end{pmatrix}"
    return f"{kind[0]}{', '.join(parts)}{kind[1]}"
