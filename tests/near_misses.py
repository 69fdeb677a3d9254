"""Wrong answers that look like the reference answer, and an independent check of them.

    python tests/near_misses.py --data ../shared/data --n 20000      # prints what math_equal takes for right

Random edits of reference answers: digits, signs, brackets, units, powers, exchanged variables, unsolved
equations. Some edits change nothing (0.50 -> 0.5); `really_equal` finds these without a line of machinery/:
by rules on the text, then by math-verify's reader and 60 digits.
"""

import argparse
import random
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def somewhere(rng: random.Random, pattern: str, text: str, replace) -> str:
    """`text` with one random match of the pattern replaced."""
    matches = list(re.finditer(pattern, text))
    if not matches:
        return text
    match = rng.choice(matches)
    return text[: match.start()] + replace(match[0]) + text[match.end() :]


def parts_of(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def edit(gold: str, rng: random.Random) -> tuple[str, str]:
    """(kind, near miss): the gold after one random edit."""
    digit, other = rng.choice("0123456789"), rng.choice("23456789")
    body = gold.strip("$ .")
    kind = rng.choice(list(EDITS))
    return kind, EDITS[kind](body, rng, digit, other)


EDITS = {
    "digit": lambda g, rng, d, o: somewhere(rng, r"\d", g, lambda old: o if old != o else "1"),
    "digit added": lambda g, rng, d, o: somewhere(rng, r"\d", g, lambda old: old + d),
    "digit removed": lambda g, rng, d, o: somewhere(rng, r"\d", g, lambda old: ""),
    "next number": lambda g, rng, d, o: somewhere(
        rng, r"\d+", g, lambda old: str(int(old) + rng.choice([-1, 1]))
    ),
    "sign": lambda g, rng, d, o: somewhere(rng, r"[-+]", g, lambda old: "+" if old == "-" else "-"),
    "sign added": lambda g, rng, d, o: somewhere(rng, r"(?<![\w\\])[\w\\]", g, lambda old: "-" + old),
    "sign removed": lambda g, rng, d, o: somewhere(rng, r"-", g, lambda old: ""),
    "all negative": lambda g, rng, d, o: f"-({g})",
    "bracket": lambda g, rng, d, o: somewhere(
        rng, r"[()\[\]]", g, lambda old: dict(zip("()[]", "[]()"))[old]
    ),
    "brackets off": lambda g, rng, d, o: re.sub(r"\\left|\\right|[()\[\]]|\\[{}]", "", g),
    "unit": lambda g, rng, d, o: (
        re.sub(r"\^\\circ|\\%|\\\$|\\(?:text|mbox) *\{[^}]*\}", "", g)
        + rng.choice(
            [r"\text{ or }", r"\text{ million}", r" thousand", r"\text{ dozen}", "x", r"\pi", r"\text{ more}"]
        )
    ),
    "other unit": lambda g, rng, d, o: somewhere(
        rng,
        r"\\(?:text|mbox) *\{[^}]*\}|\\%|\^\\circ|\\\$",
        g,
        lambda old: rng.choice([r"\text{ kg}", r"\text{ light years}^9", r"\text{ hr}", r"\text{ mph}"]),
    ),
    "other prefix": lambda g, rng, d, o: somewhere(
        rng, r"(?:(?<=text\{)|(?<=mbox\{))[^}]*(?=\})", g, lambda old: f" {rng.choice('kMmn')}{old.strip()}"
    ),
    "comma joined": lambda g, rng, d, o: somewhere(rng, r" *, *(?!\\!)", g, lambda old: ""),
    "power of a unit": lambda g, rng, d, o: somewhere(
        rng, r"(?<=\})\^\d|\\(?:text|mbox) *\{[^}]*\}$", g, lambda old: "^7" if old[0] == "^" else old + "^7"
    ),
    "power": lambda g, rng, d, o: somewhere(rng, r"\^\{?\d+\}?", g, lambda old: "^" + o),
    "power added": lambda g, rng, d, o: f"({g})^{o}",
    "root": lambda g, rng, d, o: somewhere(rng, r"\\sqrt", g, lambda old: rng.choice(["", r"\sqrt[3]", "2"])),
    "variable": lambda g, rng, d, o: somewhere(
        rng, r"(?<![\\a-zA-Z])[a-z](?![a-zA-Z])", g, lambda old: rng.choice("abcknpstuwyz")
    ),
    "exchanged": lambda g, rng, d, o: exchange(g, rng),
    "upside down": lambda g, rng, d, o: re.sub(r"frac(\{[^{}]*\}|\w)(\{[^{}]*\}|\w)", r"frac\2\1", g),
    "item removed": lambda g, rng, d, o: ",".join(parts_of(g)[1:]) or "0",
    "item added": lambda g, rng, d, o: f"{g}, {o}{d}{o}",
    "or": lambda g, rng, d, o: g + rng.choice([r"\text{ or } ", r" \text{ and } ", " or "]) + o + d + "1",
    "order": lambda g, rng, d, o: re.sub(
        r"^([(\[])([^,]*),(.*)([)\]])$", r"\1\3,\2\4", g.replace("\\left", "")
    ),
    "union": lambda g, rng, d, o: g.replace(r"\cup", rng.choice([r"\cap", r"\setminus", "+"])),
    "infinity": lambda g, rng, d, o: g.replace(r"\infty", rng.choice(["0", r"-\infty", "99999"])),
    "base": lambda g, rng, d, o: somewhere(
        rng, r"_\{?\d+\}?", g, lambda old: rng.choice(["", "_{17}", "^{17}"])
    ),
    "times ten": lambda g, rng, d, o: g + "0",
    "shifted": lambda g, rng, d, o: somewhere(
        rng, r"(?<=\d)(?=\d)|\.", g, lambda old: "." if old == "" else ""
    ),
    "hundredth": lambda g, rng, d, o: f"\\frac{{{g}}}{{100}}",
    "almost": lambda g, rng, d, o: (
        g + rng.choice([".0000001", "+10^{-9}", "00000000001", r"+\frac{1}{9^{99}}"])
    ),
    "unsolved": lambda g, rng, d, o: rng.choice(
        [
            f"{o}x={g}",
            f"x^{o}={g}",
            f"x+{o}={g}",
            f"-x={g}",
            rf"\frac{{x}}{{{o}}}={g}",
            rf"\sqrt{{x}}={g}",
            f"|x|={g}",
            f"x(x-{o})={g}",
            f"{g}=x+{o}",
            f"x!={g}",
            rf"\sin x={g}",
            f"xy={g}",
        ]
    ),
    "false chain": lambda g, rng, d, o: rng.choice(
        [f"x={o}{d}1={g}", f"{o}{d}1={g}", rf"x={o}{d}.1\approx {g}"]
    ),
    "rounded": lambda g, rng, d, o: rng.choice(
        [rf"{o}{d}.01\approx {g}", rf"{g} \pm 0.01", rf"{g}\text{{ or so or }} 1"]
    ),
    "inequality": lambda g, rng, d, o: rng.choice(["x<", r"\le ", r"x\ne ", r"x \ge "]) + g,
    "character": lambda g, rng, d, o: somewhere(
        rng, r".", g, lambda old: rng.choice(r"0123456789xyi+-*/^_(){}[]\,.:|!e")
    ),
    "character added": lambda g, rng, d, o: somewhere(
        rng, r".", g, lambda old: old + rng.choice(r"0123456789xyi+-*/^_,.:|!e")
    ),
    "character removed": lambda g, rng, d, o: somewhere(rng, r".", g, lambda old: ""),
    "two characters exchanged": lambda g, rng, d, o: somewhere(rng, r"..", g, lambda old: old[::-1]),
    "words": lambda g, rng, d, o: (
        rng.choice([r"\text{not }", r"\text{about }", r"\text{at least }", "not "]) + g
    ),
    "doubled": lambda g, rng, d, o: rng.choice([f"{g}+{g}", f"{g}{g}", f"{g}\\cdot {g}", f"2({g})"]),
}


def exchange(gold: str, rng: random.Random) -> str:
    """Two letters, or two numbers, in each other's place."""
    found = list(re.finditer(r"(?<![\\a-zA-Z])[a-z](?![a-zA-Z])|\d+", gold))
    if len(found) < 2:
        return gold
    a, b = sorted(rng.sample(found, 2), key=lambda match: match.start())
    return gold[: a.start()] + b[0] + gold[a.end() : b.start()] + a[0] + gold[b.end() :]


def near_misses(golds: list[str], n: int, seed: int):
    """`n` times (gold, kind of edit, answer) with an answer that is another text than the gold."""
    rng = random.Random(seed)
    while n:
        gold = rng.choice(golds)
        kind, answer = edit(gold, rng)
        if bare(answer) != bare(gold):
            n -= 1
            yield gold, kind, answer


# ---- the independent check ---------------------------------------------------------------------------------


def bare(text: str) -> str:
    """The text without layout and left side."""
    text = re.sub(r",\\!|\{,\}", "", text)
    text = re.sub(r"\\phantom *(?:\{[^{}]*\}|.)|\\?(?:left|right)(?![a-z])", "", text)
    text = re.sub(r"(?<!\\)\\(?:displaystyle|!|,|;|:| )|\s|(?<!\\)\$|~|\\$", "", text)
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = re.sub(r"(?<![\\a-zA-Z])(pi|sqrt)(?![a-z])", r"\\\1", text)
    text = re.sub(r"^[a-zA-Z]=|=[a-zA-Z]$|[.,;:]$|(?<=\d)\.(?!\d)|(?<![\d.])0+(?=\d)", "", text)
    text = re.sub(r"\{([^{}])\}", r"\1", text)
    return text


UNIT = re.compile(r"\\(?:text\w*|mbox)\{([^{}]*)\}(?:\^\{?(\d)\}?)?$|\^\{?(\\circ)\}?|\\?(%|\$)")


def other_units(text: str, other: str) -> bool:
    """Whether both have one unit of one word, with a power, and these differ in more than an s."""
    units = []
    for one in (text, other):
        found = UNIT.findall(one.strip("$ ."))
        units.append([part.strip(" .") for part in found[0] if part] if len(found) == 1 else [])
    a, g = ([part.removesuffix("s") for part in unit] for unit in units)
    return bool(a and g) and " " not in a[0] + g[0] and a != g


def edges(item: str) -> tuple[str, str]:
    """The round and square brackets at an item's beginning and end."""
    return re.match(r"[(\[]*", item)[0], re.search(r"[)\]]*$", item)[0]


def values(text: str) -> list:
    """What math-verify reads, as sympy objects."""
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    config = ConversionConfig(lowercase_symbols=False)
    text = re.sub(r"(\d*)\.(\d+)", lambda m: rf"(\frac{{{int(m[1] + m[2])}}}{{{10 ** len(m[2])}}})", text)
    try:
        return [latex2sympy(text, is_real=True, normalization_config=None, conversion_config=config)]
    except Exception:
        return []


def really_equal(answer: str, gold: str) -> bool:
    """Whether the two are the same, as far as another reader and 60 digits can tell."""
    import sympy

    if other_units(answer, gold):
        return False
    a, g = (bare(UNIT.sub("", text.strip("$ ."))) for text in (answer, gold))
    items, gold_items = a.split(","), g.split(",")
    unordered = "(" not in a and "[" not in a
    if a == g or (unordered and sorted(items) == sorted(gold_items)):
        return True
    if len(items) == len(gold_items) > 1:
        if [edges(x) for x in items] != [edges(y) for y in gold_items]:
            return False
        pairs = [(x.strip("()[]\\{}"), y.strip("()[]\\{}")) for x, y in zip(items, gold_items)]
        return all(really_equal(x, y) for x, y in pairs)
    for x, y in zip(values(a), values(g)):
        if x == y:
            return True
        if isinstance(x, sympy.Expr) and isinstance(y, sympy.Expr) and x.free_symbols == y.free_symbols:
            rng = random.Random(1)
            at = {s: sympy.Rational(rng.randint(100, 999), 97) for s in sorted(x.free_symbols, key=str)}
            return abs(sympy.N((x - y).subs(at), 60, maxn=500)) < sympy.Float(10) ** -50
    return False


def load_golds(data: Path | None) -> list[str]:
    """The different golds of MATH's training set and of MATH-500, or the 150 that the repository has."""
    if data is None or not data.exists():
        return (ROOT / "tests/golds.txt").read_text().splitlines()
    from data import load

    problems = load(str(data / "math_train.parquet")) + load(str(data / "math500_test.jsonl"))
    return sorted({problem.answer for problem in problems})


def main() -> None:
    from machinery.answers import math_equal

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    golds = load_golds(args.data)
    positives = [(gold, kind, answer) for gold, kind, answer in near_misses(golds, args.n, args.seed)
                 if math_equal(answer, gold)]  # fmt: skip
    false = [row for row in positives if not really_equal(row[2], row[0])]
    for gold, kind, answer in false:
        print(f"{kind:<26}{gold!r:<60} {answer!r}")
    counts = f"{len(positives)} judged right, {len(false)} of them not found equal by the independent check"
    print(f"{args.n} near misses of {len(golds)} golds: {counts}")


if __name__ == "__main__":
    main()
