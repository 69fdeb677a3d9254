"""Reading: a file's rows, a column's text, a chat's question, a solution's box and its first half as a hint.

Knows no data set's columns: data.py makes problems of the rows.
"""

import ast
import csv
import gzip
import html
import io
import json
import math
import re
import sys
import unicodedata
import zlib
from contextlib import suppress
from pathlib import Path

from machinery.command import UserError


class BadRow(UserError):
    """Why one row cannot be used: where the other rows can, it is left out."""


# ---- rows ------------------------------------------------------------------------------------------

FILE_TYPES = (".jsonl", ".json", ".parquet", ".csv", ".jsonl.gz", ".json.gz")


def read_file(path: Path) -> list:
    """Rows of a file of FILE_TYPES; a BadRow stands for a row that is none. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path} is a folder: name a file" if path.exists() else f"no such file: {path}")
    if not path.name.lower().endswith(FILE_TYPES):
        raise UserError(f"{path}: cannot read this kind of file, give one of {', '.join(FILE_TYPES)}")
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    try:
        if kind == ".parquet":
            import pyarrow.parquet  # comes with datasets; slow to import

            return pyarrow.parquet.read_table(path).to_pylist()
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):  # gzip, whatever the file's name says
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")
        if kind == ".csv":
            return _csv_rows(text)
        if kind == ".json" and text.lstrip().startswith("["):
            return json.loads(text)
    except (ValueError, RecursionError, OSError, EOFError, zlib.error) as error:  # pyarrow's are among them
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:  # the latter: thousands of brackets in each other
                raise UserError(f"{path}, line {number}: not JSON ({getattr(error, 'msg', error)})") from None
    return rows


def _csv_rows(text: str) -> list:
    """Rows of .csv; a BadRow for one of too many or too few cells, whose cells may stand in wrong columns."""
    csv.field_size_limit(2**30)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        columns = next(reader, [])
        for cells in reader:
            if not cells:  # an empty line
                continue
            if len(cells) == len(columns):
                rows.append(dict(zip(columns, cells, strict=True)))
            else:
                counts = f"columns: {len(columns)}, cells: {len(cells)}"
                rows.append(BadRow(f'{counts} (commas in a cell need quotes: "2,3,5")'))
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None
    return rows


def read_hub(name: str, split: str, built_in: dict) -> list[dict]:
    """Rows of a hub id, "name:config" where the hub wants a config.

    Raises UserError; it says which names are `built_in` tasks, since a mistyped one ends here.
    """
    path, _, config = name.partition(":")
    others = f"the built-in tasks are {', '.join(built_in)}"
    if path in built_in:
        raise UserError(f"no task {name!r}: {others}")
    import datasets  # slow to import, and the embedded tasks do not need it

    try:
        return datasets.load_dataset(path, config or None, split=split).to_list()
    except Exception as error:  # the hub client raises many kinds; all of them end the run with what it said
        said = f"{type(error).__name__}: {' '.join(str(error).splitlines()[:2])}"
        neither = f"{name!r} is no file, and the hub gave no split {split!r} of it"
        raise UserError(f"{neither}: {said}; {others}") from error


def part_of(split: str, count: int) -> range:
    """Numbers of those of `count` rows that a split names in brackets, as `datasets` has it; else of all.

    >>> part_of("train[:2]", 10), part_of("test[-20%:]", 10), part_of("train", 10)
    (range(0, 2), range(8, 10), range(0, 10))
    """
    if "[" not in split:
        return range(count)
    match = re.fullmatch(r"[^\[]*\[(-?\d+)?(%?):(-?\d+)?(%?)\]", split)
    if not match:
        raise UserError(f"split {split!r}: write a part of it as train[:100], train[100:] or train[:10%]")
    bounds = []
    for number, percent in ((match[1], match[2]), (match[3], match[4])):
        if number is None:
            bounds.append(None)
        else:
            bounds.append(round(int(number) * count / 100) if percent else int(number))
    return range(count)[slice(*bounds)]


def reason(error: Exception) -> str:
    """What an exception says about a row, in a few words."""
    if isinstance(error, BadRow):
        return str(error)
    if isinstance(error, KeyError):
        return f"no column {error}"
    if isinstance(error, UnicodeEncodeError):
        return "half of a surrogate pair, which is no character"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def leave_out(bad: dict[str, list], count: int, name: str, remedy: str) -> None:
    """Says which of `count` rows are left out: `bad` is {reason: rows}. UserError for more than 1 %."""
    if not bad:
        return
    n_bad = sum(map(len, bad.values()))
    reasons = []
    for why, rows in list(bad.items())[:5]:
        reasons.append(f"{why} (rows {str(rows[:10])[1:-1]})")
    message = f"{name}: {n_bad} of {count} rows cannot be used: {'; '.join(reasons)}"
    if n_bad > 0.01 * count:
        raise UserError(f"{message}: {remedy}")
    print(f"{message}: left out", file=sys.stderr)


# ---- text of a column ------------------------------------------------------------------------------

MISSING = ("", "null", "none", "n/a", "nan")  # how programs write into text that there is no value


def is_missing(text: str) -> bool:
    return text.strip().lower() in MISSING


def text_of(value) -> str:
    """A column's value as text: lists joined, 27.0 as 27, bytes as UTF-8.

    A list in a list is a pair or point. Raises BadRow for an object and for a number that is not finite.

    >>> text_of([1, 2.0]), text_of([[1, 2], [2, 1]]), text_of([["5"]])
    ('1, 2', '(1, 2), (2, 1)', '5')
    """
    if isinstance(value, dict):
        raise BadRow(f"an object, {{{', '.join(map(repr, list(value)[:3]))}}}, where text is expected")
    if isinstance(value, (list, tuple)):
        texts = []
        for item in value:
            pair = isinstance(item, (list, tuple)) and len(item) > 1
            texts.append(f"({text_of(item)})" if pair else text_of(item))
        return ", ".join(texts)
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, float) and not math.isfinite(value):  # JSON's Infinity, 1e400
        raise BadRow(f"{value}, where a finite number or text is expected")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def answer_of(value) -> str:
    """`text_of` an answer, without what only damage puts there.

    That is HTML entities, invisible characters, and the Python or JSON text of a list of texts or of bytes.

    >>> answer_of("['34']"), answer_of(b"34"), answer_of("x &lt; 3"), answer_of("[1, 2]")
    ('34', '34', 'x < 3', '[1, 2]')
    """
    text = re.sub(r"&#?\w+;", lambda match: html.unescape(match[0]), text_of(value))
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    if re.match(r"(\[[\[(\s]*b?|b)['\"]", text):
        shown = re.sub(r"(?<=['\"])\s+(?=b?['\"])", ", ", text)  # numpy writes no commas
        if re.search(r"(?<!\\)\\(?!u[0-9a-fA-F]{4})([A-Za-z]{2}|[^\\\w'\"])", shown):  # LaTeX: \f is a letter
            shown = shown.replace("\\", "\\\\")
        text = text_of(literal(shown) or text)
    return text.strip()


def tolerance_of(value) -> str:
    """The text of a decimal number, "" where there is none. Raises BadRow for "0.1,0.2", "5%", a word."""
    text = text_of(value)
    if not value or is_missing(text):
        return ""
    if not re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,2})?", text):
        raise BadRow(f"an error of {text!r}, where a number is expected")
    return text


def literal(text: str):
    """The value that JSON or Python text shows; None where it is neither."""
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return read(text)
    return None


def hint_of(value) -> str:
    """A hint as text: lists, and their text, have a line an item. What is_missing is left out."""
    if isinstance(value, str) and re.match(r"\[\s*['\"]", value):
        value = literal(value) or value
    if isinstance(value, list):
        lines = [text_of(item) for item in value]
        return "\n".join(line for line in lines if not is_missing(line))
    text = value if isinstance(value, str) else text_of(value)
    return "" if is_missing(text) else text


# ---- chats -----------------------------------------------------------------------------------------

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT = {"human": "user", "gpt": "assistant"}  # its names of them


def is_chat(value) -> bool:
    """Whether it is a list of messages, {role, content} or ShareGPT's {from, value}."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(message, dict) and {"role", "from"} & message.keys() for message in value)


def chat_of(value) -> tuple[str, list[dict], str]:
    """What is asked in a chat, the messages before that, and the reply to it. Anything else is asked itself.

    The last user message is what is asked. Raises BadRow where there is none, or not only text.

    >>> chat_of([{"from": "system", "value": "Be brief."}, {"from": "human", "value": "What is 2+3?"}])
    ('What is 2+3?', [{'role': 'system', 'content': 'Be brief.'}], '')
    """
    if isinstance(value, str) and re.match(r"\s*\[\s*\{", value):  # it went through .csv
        shown = literal(value)
        value = shown if is_chat(shown) else value
    if isinstance(value, str):
        return value, [], ""
    if not is_chat(value):
        if isinstance(value, list):
            raise BadRow("a list that is no chat, where a question is expected")
        return text_of(value), [], ""
    messages = []
    for message in value:
        role = message.get("role") or message.get("from")
        role = SHAREGPT.get(role, role)
        if role not in ROLES:
            raise BadRow(f"a message of the role {role!r}")
        content = message.get("value") if message.get("content") is None else message["content"]
        messages.append({"role": role, "content": _content(content)})
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if not users:
        raise BadRow("a chat without a user's message")
    last = users[-1]
    reply = "\n".join(message["content"] for message in messages[last + 1 :])
    return messages[last]["content"], messages[:last], reply


def _content(content) -> str:
    """The text of a message; its parts, if it has parts, have a line each."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRow("a message without text")
    texts = []
    for part in content:
        part = {"text": part} if isinstance(part, str) else part
        kind = part.get("type") or "text"
        if kind != "text" or not isinstance(part.get("text"), str):
            raise BadRow(f"a message with a part of type {kind!r}, and only text can be read")
        texts.append(part["text"])
    return "\n".join(texts)


# ---- solutions ---------------------------------------------------------------------------------

# \boxed{..}, \boxed 7, \boxed\frac12; what else a brace may belong to.
BOX = re.compile(r"""
    \\(?:boxed|fbox)\s*(?: (\{) | ( (?![a-z]{2})[^\s$;{}\\]+
      | \\(?:[dt]?frac|sqrt|text[a-z]*|math[a-z]*)(?:\{(?:[^{}]|\{[^{}]{0,200}\}){0,200}\}|\d){1,2} ))
  | \\. | [{}]""", re.DOTALL | re.VERBOSE)


def last_box(text: str) -> str | None:
    r"""Content of the last closed \boxed{...} or `\boxed 7` in the last 200 kB, with boxes in it opened.

    >>> last_box(r"so \boxed{\frac{1}{2}} or rather \boxed{ {3}, \boxed{4} }.")
    '{3}, 4'
    """
    text = text[-200_000:]
    boxes, open_braces = [], []  # (macro, argument, its end, macro's end); (macro, argument) or None
    for match in BOX.finditer(text):
        if bare := match[2]:
            end = match.end() - (len(bare) - len(bare.rstrip(".,:")))  # a full stop, not a decimal point
            boxes.append((match.start(), match.start(2), end, end))
        elif match[1] or match[0] == "{":
            open_braces.append((match.start(), match.end()) if match[1] else None)
        elif match[0] == "}" and open_braces:
            box = open_braces.pop()
            if box and match.start() - box[1] <= 2_000:
                boxes.append((*box, match.start(), match.end()))
    if not boxes:
        return None
    while len(boxes) > 1 and not text[boxes[-1][1] : boxes[-1][2]].strip():
        boxes.pop()  # "as asked in \boxed{}"; "as \boxed says" is none
    _, start, end, _ = boxes.pop()
    inside = [box for box in boxes if box[0] >= start]
    content = ""
    for cut, cut_end in sorted([box[:2] for box in inside] + [box[2:] for box in inside]):
        content += text[start:cut]
        start = cut_end
    return (content + text[start:end]).strip()


def program_of(prompt: str, body: str) -> str:
    """Prompt and body as one program; MBPP indents its bodies otherwise than its prompts' docstrings."""
    with suppress(SyntaxError):
        compile(prompt + body, "program", "exec")
        return prompt + body
    indent = re.search(r"^([ \t]+)\S", body, re.MULTILINE)[1]
    head, signature, docstring = prompt.rpartition("\ndef ")
    return head + signature + re.sub(r"\n[ \t]*(?=\S)", f"\n{indent}", docstring) + body


def solution_hint(question: str, solution: str, answer: str) -> str | None:
    r"""The first half of a solution's sentences: never a box, nor the answer unless the question has it too.

    >>> solution_hint("What is 2+3?", r"Count on from 2. Three steps lead to 5. So \boxed{5}.", "5")
    'Count on from 2.'
    """
    solution = re.sub(r"\[asy\].*?(\[/asy\]|$)", "", solution, flags=re.DOTALL)
    # A sentence ends in a full stop, a paragraph or a displayed formula, and not inside a formula.
    sentences = [""]
    for part in re.split(r"(?<=[.!?])(?=\s)|(?<=[.!?][$)])(?=\s)|\n\n+|(?<=\\\])|(?<=\$\$)", solution):
        sentences[-1] += part
        if sentences[-1].count("$") % 2 == 0 and sentences[-1].count(r"\[") == sentences[-1].count(r"\]"):
            sentences.append("")
    sentences = [" ".join(sentence.split()) for sentence in sentences if sentence.strip()]
    kept = []
    for sentence in sentences[: len(sentences) // 2]:
        told = holds_answer(" ".join([*kept, sentence]), answer) and not holds_answer(question, answer)
        if told or "boxed" in sentence:
            break
        kept.append(sentence)
    return " ".join(kept) or None


def holds_answer(text: str, answer: str) -> bool:
    """Whether `answer` stands in `text` as a token of its own; spaces and sizes of brackets do not count."""

    def plain(s):
        s = re.sub(r"\\[,!;: ]|\\left(?!\w)|\\right(?!\w)|(?<=\\)[dt](?=frac)|(?<=\d),(?=\d{3}(?!\d))", "", s)
        s = s.replace("$", "\n")  # a border: in `is $-2$` nothing stands before the sign
        return re.sub(r"(\\[A-Za-z]+)", r"\1 ", s)  # the name of a command is no part of the number behind it

    pieces = re.findall(r"\\[A-Za-z]+|\S", plain(answer))
    left = r"(?<![\w.])" if answer[:1].isalnum() else ""
    if answer.startswith("-"):  # a sign, not the minus between two terms
        left = r"(?<![\w)\]}])(?<![\w)\]}] )"
    right = r"(?!\w|\.\d)" if answer[-1:].isalnum() else ""
    pattern = left + r"\s*".join(map(re.escape, pieces)) + right
    return bool(pieces) and re.search(pattern, plain(text)) is not None
