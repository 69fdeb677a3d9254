r"""An answer in one way of writing, its brackets and separators, and the units behind its numbers.

    normalise(r"$\dfrac12$. ")                  # \frac12
    measured('38"cm"^2'), units('"cm"^2')        # ('38', '"cm"^2'), {"cm": 2}
"""

import re
import unicodedata
from collections import Counter
from functools import lru_cache

# ---- one way of writing ------------------------------------------------------------------------------------

SYMBOLS = dict(zip("−–—‐‑×·⋅÷±∓≤⩽≥⩾≠∞∪∩∈∅√∛∜°∘ℝ⟨⟩€£¢¥₹‰。，′’⁄≈∖", (
    r"-|-|-|-|-|\times |\times |\times |/|\pm |\mp |\le |\le |\ge |\ge |\ne |\infty |\cup |\cap |\in |"
    r"\emptyset |\surd |\surd[3]|\surd[4]|^\circ |\circ |\mathbb{R}|(|)|\text{euro}|\text{gbp}|\text{cent}|"
    r"\text{yen}|\text{rupee}|\text{permille}|.|,|'|'|/|"
    r"\approx |\setminus ").split("|")))  # fmt: skip
SYNONYMS = dict(pair.split(":") for pair in (
    r"cdot:\times ast:\times leq:\le leqslant:\le geq:\ge geqslant:\ge neq:\ne lt:< gt:> div:/ "
    r"simeq:\approx langle:( rangle:) lbrace:\{ rbrace:\} varnothing:\emptyset backslash:\setminus "
    r"lg:\log_{10} Reals:\mathbb{R} dfrac:\frac tfrac:\frac cfrac:\frac sfrac:\frac xfrac:\frac "
    r"nicefrac:\frac flatfrac:\frac dbinom:\binom tbinom:\binom bar:\overline imath:i jmath:j "
    r"degrees:\degree lvert:| rvert:| vert:| mid:|"
).split())  # fmt: skip
LAYOUT = (
    "left. right. left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr displaystyle "
    "textstyle tiny small normalsize large Large LARGE huge Huge therefore limits underline ensuremath "
    "rm bf it sf tt hfill strut"
).split()
GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho sigma tau "
    "phi varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega triangle"
).split()
FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|csc|ln|log|exp"
INSIDE = r"(?:[^{}]|\{[^{}]*\})*"
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
BASES = "two three four five six seven eight nine ten eleven twelve".split()
MODULO = r"\\(?:[pb]?mod(?![a-z])|(?:text|mathrm|operatorname) *\{ *mod *\}) *(\{[^{}]*\}|\d+|[a-z])"
TEXT = (
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|[mh]box|math(?:rm|sf|it|tt|cal|normal|bf)|operatorname\*?|emph"
    r"|boldsymbol|bold|bm)"
)


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
    if re.fullmatch(FUNCTIONS + "|sec|lg", words):
        return f"\\{words} "
    return words if re.fullmatch(r"[^A-Za-z]*|[ei]|.*\\[a-z].*", words) else f' "{words}" '


def _thousands(match: re.Match) -> str:
    """1,234 as 1234. (100,200) and [-36,104], whose bracket has no other comma, stay pairs; (1,000) is a
    number, since no one writes 000 for nought."""
    pair = ",0" not in match[0] and _commas_around(match) == match[0].count(",")
    return match[0] if pair else match[0].replace(",", "")


def _commas_around(match: re.Match) -> int:
    r"""The commas in the bracket, ( [ or \{, around a match; 0 where there is none, or a condition in it."""
    around = []  # of each open bracket what opens it, where, and its commas
    for token in re.finditer(r"\\?[{}]|[()\[\],]", match.string):
        outside = not match.start() <= token.start() < match.end()
        if token[0] == "," and around:
            around[-1][2] += 1
        elif outside and token[0][-1] in "([{":
            around.append([token[0], token.end(), 0])
        elif outside and token[0] != "," and around:
            opening, start, commas = around.pop()
            if start <= match.start() < token.start():
                condition = re.search(r"[<>=|:]|\\(?:mid|[lg]eq?)", match.string[start : match.start()])
                return 0 if opening == "{" or condition else commas
    return 0


REWRITES = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r"(?<=\d)(?:, ?\\!|\{,\}|\\,|\\!,) *(?=\d{3}(?!\d))", ""),  # 1{,}000 and 1,\!000 have no comma of a list
    (r"^\s*([*_]+)([^*_]+)\1\s*$", r"\2"),  # **12** of Markdown
    (r"\{ *\\(?:rm|bf|it|cal) ([^{}]*)\}", r"\\text{\1}"),
    (r"\\([A-Za-z]+\.?)(?![A-Za-z])", lambda m: "" if m[1] in LAYOUT else m[0]),
    (r"(?<!\\)\\(?:[()\[\]!]|\s*$)|\\\\(?= *\\end)", ""),
    (r"(?<!\\)\\[,;:> ]|\\(?:q?quad|enspace|thinspace)(?![a-z])|\\[hv]space\*?\{[^{}]*\}|~|\s+", " "),
    (r"\\(?:text)?color(?:box)? *\{[^{}]*\}|\\phantom *(?:\{[^{}]*\}|.)", ""),
    (r"(?<![\d.,^/_])[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)", _thousands),
    (r"(?<![a-z])\{ *([-+,]) *\}", r"\1"),
    (r"(^|[(\[,=]) *\+", r"\1"),
    (r"\\([A-Za-z]+)", lambda m: SYNONYMS.get(m[1], m[0])),
    (r"\\(?:begin|end) *\{(?:aligned|align\*?|gathered)\}", ""),
    (r"\\begin *\{array\} *\{[^{}]*\}", r"\\begin{matrix}"),
    (r"\\end *\{array\}", r"\\end{matrix}"),
    (rf"(?:\{{|^)({INSIDE})\\over(?![a-z])({INSIDE})(?:\}}|$)", r"\\frac{\1}{\2}"),
    (r"\{([^{}]*)\\choose(?![a-z])([^{}]*)\}", r"\\binom{\1}{\2}"),
    (r"\\dot *\{?(\d)\}?(?:(\d*)\\dot *\{?(\d)\}?)?", r"\\overline{\1\2\3}"),  # 0.\dot3
    (r"\\overline *(\d)", r"\\overline{\1}"),
    (r"\\surd(\[\d\])? *(\d+)", r"\\sqrt\1{\2}"),  # √12 is not \sqrt12
    (r"\\surd", r"\\sqrt"),
    (r"\\mathbf *\{R\}", r"\\mathbb{R}"),
    (r"\\mathbb *([A-Z])(?![a-z])", r"\\mathbb{\1}"),
    (r"\\(?:vec|hat|math(?:bf|rm)|textbf|boldsymbol|bm|overrightarrow)"
     r"(?: *\{ *([a-z]) *\}| +([a-z])(?![a-z]))", r"\1\2"),
    (r"\\hat\{([a-z])\}", r"\1"),  # \hat{\mathbf{i}}
    (rf"\( *{MODULO} *\)|{MODULO}", lambda m: rf"\mod{{{(m[1] or m[2]).strip('{} ')}}}"),
    (r"\*\*", "^"),
    (r"\*|\\times *", r"\\times "),
    (r"<=", r"\\le "), (r">=", r"\\ge "), (r"!=", r"\\ne "),
    (r"\\\{ *\\\}", r"\\emptyset "),
    (r"(?<=\d)[eE]([-+]?\d{1,3})(?![\d.])", r"\\times 10^{\1}"),
    # words, and signs that are words
    (rf"{TEXT} *\{{([^{{}}]*)\}}", _words),
    (r'"?all real numbers"?', r"\\mathbb{R}"),
    (r'"\(([^"()]*)\)"', r'"\1"'),  # \text{(B)}
    (r'"(\d[\d:., ]*)([A-Za-z][^"\d]*)"', r'\1 "\2"'),  # \text{4:30 p.m.}
    (r"(?<![A-Za-z\\])USD *(?=\d)|\\\$", ' "dollar" '),
    (r"\$", ""),
    (r"\\?%", ' "percent" '),
    (r"\^ *(?:\{ *\\circ *\}|\\circ(?![a-z]))", r"\\degree "),
    (r"([^\x00-\x7f]+)", r' "\1" '),
    (rf'(?<=\d) *("?) *({"|".join(SCALES)})s?(?![a-z]) *', lambda m: rf"\times 10^{{{SCALES[m[2]]}}} {m[1]}"),
    (rf'_ *\{{? *"?({"|".join(BASES)})"? *\}}?',
     lambda m: f"_{{{BASES.index(m[1]) + 2}}}"),  # 101_{\text{two}}
    (rf"(?<![\\a-zA-Z])({FUNCTIONS}|sec(?=\()|pi|sqrt|infty)(?![a-zA-Z])", r"\\\1 "),  # sin(x)
    (r"(?<![\\a-zA-Z])inf(?:inity)?(?![a-zA-Z])", r"\\infty "),
    (r"\\log *_ *(?:e|\{e\})", r"\\ln "),
    (r"(?<![\\a-zA-Z])\\?lg(?![a-zA-Z])", r"\\log_{10}"),
    (r"_ *\{?\((\d+)\)\}?", r"_{\1}"),  # 101_{(2)}
    (r"(?<=\\in) *Z(?![a-z])", r"\\mathbb{Z}"),
    (r' *(?:\(|"(?:for|where|with)") *([a-z] *\\in[^()]*)\)?$', r",\1"),  # k\pi (k\in\mathbb{Z})
    # A space stays where it keeps two numbers, names or a unit apart: "1 1/2" is not 11/2.
    (r'(?<![\w.,^/)}"])(?<![\w.,^/)}"] )[1-9]\d{0,2}(?: \d{3})+(?! ?[\d/\\(])',
     lambda m: m[0].replace(" ", "")),  # 12 345
    (r' +|""', " "),
    (r"(?<![\w}]) | (?!\w)", ""),
    (r"(?<![\w.])(\d+)_\{10\}(?![\w^])", r"\1"),
    (r"([\^_])\{(\w)\}(?!\d)", r"\1\2"),
    (r"(?<!\.)[.,;]$", ""),
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


# ---- brackets and separators -------------------------------------------------------------------------------

TOKEN = re.compile(r"""
    (?P<open> \\\{ | \\begin\{\w+\} | [(\[{]) | (?P<close> \\\} | \\end\{\w+\} | [)\]}])
  | (?P<item> [,;]?\ ?(?:"[,\ ]*(?:and|or)[,\ ]*" | (?<![a-z\\])(?:and|or)(?![a-z]))
            | [,;] | \\cup(?![a-z]))
  | (?P<order> \\[lg]e(?![a-z]) | [<>]) | (?P<equal> = | \\approx(?![a-z]))
  | (?P<colon> :) | (?P<row> \\\\) | (?P<cell> &) | "[^"]*" | \\[a-zA-Z]+ | \\.
""", re.VERBOSE)  # fmt: skip


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
    """The parts alone; none where one of them is empty."""
    parts = cut(s, kind)[0]
    return parts if all(parts) else []


def bracketed(s: str) -> tuple[str, str, str] | None:
    """(opening, inside, closing) where one pair of brackets is around all of `s`."""
    depth, first, token = 0, None, None
    for token in TOKEN.finditer(s):
        depth += (token.lastgroup == "open") - (token.lastgroup == "close")
        first = first or token
        if depth <= 0:
            break
    if token is None or first.start() or depth or token.end() < len(s) or token.lastgroup != "close":
        return None
    return first[0], s[first.end() : token.start()].strip(), token[0]


def readable(s: str) -> bool:
    """Whether a normalised answer is no longer than answers are, and its brackets open and close."""
    depth = deepest = 0
    for token in TOKEN.finditer(s):
        depth += (token.lastgroup == "open") - (token.lastgroup == "close")
        deepest = max(deepest, depth)
        if depth < 0:
            return False
    return depth == 0 and deepest <= 40 and len(s) <= 2000


# ---- names -------------------------------------------------------------------------------------------------

# What may stand before "=": x, x_1, "Area", area, (x,y), f(3), P(A), f^{-1}(x), AB, |AB|, |z|, \angle ABC,
# \overline{AB}, \sin A, \frac{NO}{BO}, A:B, m+n. Not what is to be solved: 2x, -x, x^2, |x|, x(x+1), x+y.
INDEX = r"(?:_\{[^{}]*\}|_\w)?'*"
SIDE = rf"(?:[A-Z]{INDEX}\ ?){{1,4}}"
LETTER = rf"(?:[A-Za-z]|\\(?:{'|'.join(GREEK)})(?![a-z]) ?){INDEX}"
NAME = re.compile(rf"""
    {LETTER} | "(?!not)[^"]+" | [A-Za-z][a-z]{{3,}} | \(?{LETTER}(?:,{LETTER})+\)?
  | {SIDE}(?:\^(?:\{{-1\}}|T))? | [fgh]{INDEX}\((?:[^()]|\([^()]*\))*\)
  | (?:(?![xyz]){LETTER}|{SIDE})(?:[-+:/](?:(?![xyz]){LETTER}|{SIDE}))+ | \\frac\{{[a-w]\}}\{{[a-w]\}}
  | (?P<f>[A-Zfghpqr] | \\(?:{'|'.join(GREEK)}|gcd|lcm|max|min|det|deg|arg) | "[^"]+"){INDEX}(?:\^\{{-1\}})?
    \((?:(?!(?P=f))[^()] | \([^()]*\))*\)
  | \\det\ ?{SIDE} | E\[[A-Z]{INDEX}\]
  | \|(?:{SIDE}|[abuvwz])\| | m?\\(?:angle|triangle)\ ?{SIDE} | \\overline\{{{SIDE}\}} | \[{SIDE}\]
  | \\(?:sin|cos|tan|cot|sec|csc)(?:\^2)?\ ?(?:[A-Z\d(){{}}\ ] | \\[a-z]+)+
  | \\frac\{{{SIDE}\}}\{{{SIDE}\}} | \\frac\{{d[a-z]\}}\{{d[a-z]\}}
""", re.VERBOSE)  # fmt: skip
UNKNOWN = re.compile(rf"-?{LETTER}(?:\([a-z](?:,[a-z])*\))?")  # what an inequality may be about
MATRIX = re.compile(r"\\begin\{(?:[pb]|small)?matrix\}")
REALS = re.compile(r"(?:\\mathbb\{R\}|\(-\\infty,\\infty\))(?:(?:\\setminus ?|-)\\?\{(?P<without>.+?)\\?\})?")
BUILDER = re.compile(rf"(?P<name>{LETTER})(?: ?\\in ?\\mathbb\{{R\}})? ?[:|](?P<condition>.+)")
PLUS_OR_MINUS = re.compile(r"\\(p)m(?![a-z]) ?|\\mp(?![a-z]) ?")  # not \pmod
BASE = re.compile(r'(-?)"?([0-9A-Z]+(?:\.[0-9A-Z]+)?)"?_(?:(\d)|\{(\d+)\})')  # 6744_8


# ---- units -------------------------------------------------------------------------------------------------

UNITS = {alias: words.split()[0] for words in (
    "mm millimeter millimetre", "cm centimeter centimetre", "m meter metre", "km kilometer kilometre",
    "in inch inche", "ft foot feet", "yd yard", "mi mile", "acre", "g gram gm", "kg kilogram", "mg milligram",
    "lb pound", "oz ounce", "ml milliliter", "l liter litre", "gal gallon", "s sec second", "min minute",
    "hr hour h", "day", "week", "month", "yr year", "am", "pm", "cent", "dollar usd", "euro", "gbp",
    "percent percentage", "degree deg circ", "rad radian", "c celsius", "f fahrenheit", "k kelvin",
    "n newton", "j joule", "w watt", "v volt", "mol mole", "hz hertz", "unit", "dm decimeter decimetre",
    "ms millisecond",
    "nm nanometer nanometre", "hm hectometer hectometre", "um micrometer micrometre micron", "yen", "rupee",
    "yuan", "peso", "permille", "ppm", "ppb", "basis", "ton tonne", "quart", "pint", "cup", "decade",
    "ampere amp A", "pa pascal", "ev electronvolt", "cal calorie", "wh", "bar", "person people",
) for alias in words.split()}  # fmt: skip
PREFIXES = {"tera": "T", "giga": "G", "mega": "M", "kilo": "k", "hecto": "h", "deci": "d", "centi": "c",
            "milli": "m", "micro": "u", "nano": "n", "pico": "p"}  # fmt: skip
SYMBOL = re.compile(r"([TGMkKhdcmunp])(m|g|s|A|K|J|N|W|V|C|F|L|l|P[aA]|Hz|eV|cal|mol|Wh|bar|rad)")  # mA, MeV
PREFIXED = re.compile(rf"({'|'.join(PREFIXES)})([a-z]+)")
# Without quotes nm may be n times m, and amp a product.
QUOTED = {"dm", "ms", "nm", "hm", "um", "amp", "pa", "ev", "cal", "wh", "bar", "circ"}
WRITTEN = [unit for unit in UNITS if len(unit) > 1 and unit not in QUOTED] + ["mph", "kph"]
KNOWN = "|".join(sorted(WRITTEN, key=len, reverse=True))
UNIT = re.compile(rf"""
    (?:\ ?(?:/|\\times\ ?)?
       (?: "[^"]*" | \\degree\ ?
         | (?<![A-Za-z\\])(?:(?:{KNOWN})s?|per|sq|(?<=[\ /])[A-Za-z]{{4,}}|AM|PM)(?:\.|(?![A-Za-z]))
         | (?<=\ )(?=[a-z]*[aeiou])[a-z]{{3}}(?![A-Za-z])
         | (?:(?<=[\d}}]\ )|(?<=[A-Za-z"]/)|(?<=\\degree\ ))[mgshLJKNWVCF](?![A-Za-z])
         | \\frac\{{"[^"]*"\}}\{{"[^"]*"(?:\^-?\d|\^\{{-?\d\}})?\}} )
       (?:\^-?\d|\^\{{-?\d\}})?
    ){{1,8}}$""", re.VERBOSE)  # fmt: skip
NUMBERS = rf"(?:zero|one|{'|'.join(BASES)}|\w+teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty)(?!-)"
# Words behind a number that make it another one, or none for certain.
NO_UNIT = re.compile(
    rf"\b(?:(?i:{NUMBERS}|choose|too"
    r"|or|and|not|no|more|less|least|most|than|to|times|plus|minus|over|above|below|under|between"
    r"|half|halves|thirds?|quarters?|squared|\w*(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|teen|tie"
    r"|hundred|thousand|illion)ths?|cubed|factorial|root|base|mod\w*|hundreds?|thousands?|\w+illions?|tens"
    r"|lakhs?|crores?|[bm]n|gross|dozens?|score|pairs?|negative|doubled|\w+pled|halved|pi|sqrt|log|ln"
    r"|approx\w*|about|nearly|roughly|almost|around|circa|wrong\w*|incorrect\w*|false|untrue|invalid|never"
    r"|\w+n't)|[abcdefi-knopqrtu-zBM])\b|[〇零一二三四五六七八九十百千万亿億萬兆半两或和负]"
)
PARTS = re.compile(r'(?<![\\A-Za-z])[A-Za-z]{2,}"? ?\d')  # a number with a unit before the last one
POWERS = re.compile(r"\^\{?-?\d|(?<![A-Za-z])(?:[cmk]?m|ft|in|s)[234]\b")  # \text{cm^2}, \text{m2}


def measured(s: str) -> tuple[str, str]:
    """What stands before a unit, and the unit: ('5', '"cm"^2'); the unit is "" where there is none."""
    if match := re.fullmatch(r'(-?)("dollar"|"euro"|"gbp")(.+)', s):
        return match[1] + match[3], match[2]
    unit = UNIT.search(s)
    if unit is None or NO_UNIT.search(unit[0].replace(".", "")) or not s[: unit.start()].strip(" -"):
        return s, ""
    body = s[: unit.start()].strip()
    if re.search(r"\d", POWERS.sub("", unit[0])) or PARTS.search(body):
        return s, ""  # 3 R2, 3 feet 2 inches
    angle = "degree" in unit[0] and re.search(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])", s)
    if angle or not ('"' in unit[0] or re.search(r"[\d)}]$|\\pi$", body)):  # "no solution" has no unit
        return s, ""
    return body, unit[0]


@lru_cache(4096)
def as_gold(s: str) -> str:
    r"""A gold with a last factor of 1 where the letters behind it are factors too, and no unit: 2abcd, V/R K.

    In an answer they may be a unit: so is all that people write behind a number.
    """
    unit = measured(s)[1]
    words = re.findall("[A-Za-z]+", re.sub(r'"[^"]*"', "", unit))
    for word in words:
        known = len(word) > 2 and re.fullmatch(rf"(?:{KNOWN})s?|per", word)
        phrase = len(word) > 3 and f" {word}" in s and list(word) != sorted(word)
        if known or phrase or word in ("cm", "mm", "km", "kg", "ft", "lb", "oz", "yd", "hr", "AM", "PM"):
            return s
    return s if '"' in unit or "degree" in unit or not words else rf"{s}\times 1"


def known_unit(word: str) -> str:
    """The one name of a unit that is known, "" of another word: km of kilometres; mW is not MW."""
    if word in UNITS:
        return UNITS[word]
    simple, prefix = word.lower(), ""
    if match := SYMBOL.fullmatch(word):
        prefix, base = match[1].replace("K", "k"), known_unit(match[2])
    else:
        base = UNITS.get(simple) or UNITS.get(simple.rstrip("s"), "")
    if not base and (match := PREFIXED.fullmatch(simple)):
        prefix, base = PREFIXES[match[1]], known_unit(match[2])
    return UNITS.get(prefix + base, prefix + base) if base else ""


def units(unit: str) -> Counter:
    """The known units in it with their powers: "m/s^2" is {"m": 1, "s": -2}."""
    powers, sign, power, last = Counter(), 1, 1, ""
    unit = re.sub("(?i)([mk])ph", lambda m: {"m": "mi/h", "k": "km/h"}[m[1].lower()], unit.replace(".", ""))
    unit = re.sub(r'\\mu ?"?', " u", unit.replace("}{", "/"))
    for word in re.findall(r"[A-Za-z]+|/|-?\d", unit):
        known = known_unit(word)
        if word.lower() in ("/", "per"):
            sign = -1
        elif word.lower() in ("square", "sq", "cubic"):
            power = 3 if word.lower() == "cubic" else 2
        elif known:
            powers[known] += sign * power
            last, power = known, 1
        elif word[-1].isdigit() and last:
            powers[last] *= int(word)
    return powers


def differ(unit: str, other: str) -> bool:
    """Whether two units are not the same: known ones, or one word each that does not begin the other's."""
    if units(unit) and units(other):
        return units(unit) != units(other)
    words, others = (re.findall("[a-z]+", one.lower()) for one in (unit, other))
    if len(words) != 1 or len(others) != 1:
        return False
    short, long = sorted((re.sub("(?<=..)(?:y|ie|e)?s?$", "", word) for word in words + others), key=len)
    return not long.startswith(short) or re.findall(r"\d", unit) != re.findall(r"\d", other)
