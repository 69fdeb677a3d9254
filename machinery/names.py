"""What --data names: one data set or several, and what each is called in tables, ids and folders."""

import os
from pathlib import Path

from machinery.reading import FILE_TYPES
from machinery.tasks import TASKS


def names_of(data: str) -> list[str]:
    """The data sets that --data names, with commas between; a file with a comma in its name is one of them.

    >>> names_of("math.jsonl, openai/gsm8k:main")
    ['math.jsonl', 'openai/gsm8k:main']
    """
    names = [name.strip() for name in data.split(",") if name.strip()]
    return [data] if os.path.exists(data) or not names else names


def labels(names: list[str]) -> list[str]:
    """Names of files, folders or data sets as short as tells them apart: of a/math.jsonl, b/code.jsonl math,
    code. The name of a folder has no ending that could be left out.
    """
    paths = [Path(name) for name in names]
    short = [path.resolve().name if path.is_dir() else path.stem for path in paths]
    if len(set(short)) < len(short):
        short = list(names)
    if len(set(short)) < len(short):  # one file twice
        short = [f"{name} ({i})" for i, name in enumerate(short, 1)]
    return short


def is_file(name: str) -> bool:
    """Whether a data set is a local file, which is one split."""
    return name not in TASKS and (name.lower().endswith(FILE_TYPES) or Path(name).exists())


def short_name(what: str) -> str:
    """Of a model or data set, for the name of a folder."""
    path = Path(what)
    return path.stem if path.is_file() else path.name if path.exists() else what.replace("/", "_")
