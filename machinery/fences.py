"""The program in a completion: the last of its fenced blocks that is one. Pure functions."""

import ast
import re
import textwrap

MARK = "\ufeff"  # that some files begin with, and that is no part of the program


def fenced_blocks(completion: str) -> list[tuple[str, str]]:
    """(mark, text) of each fenced block in the last 200 kB; the last one need not be closed."""
    blocks, block, fence, mark, depth = [], [], "", "", 0
    for line in completion[-200_000:].removeprefix(MARK).replace("\r\n", "\n").split("\n"):
        line = line.rstrip()
        if not fence:
            line = without_text_before(line)
        opening = re.fullmatch(r"(\s*)(`{3,}|~{3,})([^`]*)", line)
        if fence and opening and (
            len(opening[1]) > depth + 3 or not opening[2].startswith(fence) or not opening[3]
        ):
            opening = None  # an example in a docstring, or the end
        code = line.rstrip(fence[:1] or None)
        closing = fence and len(line) - len(code) >= len(fence) and (code.strip() or len(code) <= depth + 3)
        if closing and code.strip():
            block.append(code)
        if closing or (opening and fence):
            blocks.append((mark, "\n".join(block)))
            fence = ""
        elif fence:
            block.append(line)
        if opening and not closing:
            block, fence, mark, depth = [], opening[2], opening[3].strip(), len(opening[1])
    if fence and "".join(block).strip():
        blocks.append((mark, "\n".join(block)))
    return blocks


def without_text_before(line: str) -> str:
    """The fence alone in "Here is the code: ```python": the fence is marked, or follows a colon."""
    text, ticks, mark = line.rpartition("```")
    before = text.rstrip("`")
    opens = ticks and before.strip() and "```" not in before
    if opens and (mark.isalnum() or (not mark and before.rstrip().endswith(":"))):
        return line[len(before) :]
    return line


def last_program(blocks: list[tuple[str, str]]) -> str:
    """The last block that is marked as Python, or is not marked and calls or defines something, which output
    does not. Without one, the last block."""
    for mark, text in reversed(blocks):
        text = textwrap.dedent(text.removeprefix(MARK))
        if re.match(r"\W*(python|py)\d*\b", mark, re.IGNORECASE) or (not mark and is_program(text)):
            return text
    return textwrap.dedent(blocks[-1][1].removeprefix(MARK))


def is_program(text: str) -> bool:
    try:
        nodes = ast.walk(ast.parse(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    parts = ast.Call | ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom
    return any(isinstance(node, parts) for node in nodes)
