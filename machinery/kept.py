"""What a long evaluation has done so far, kept in a file from chunk to chunk."""

import json
import os
from pathlib import Path

from machinery.command import UserError
from machinery.ranks import gather


class Kept:
    """The chunks of an evaluation that are done, in a file: one that was stopped at any moment goes on."""

    def __init__(self, path: Path | None = None, settings: dict | None = None):
        """Goes on from the file `path`, if one is given. Raises UserError if it is of other `settings`."""
        self.path, self.chunks = path, []
        if path is None:
            return
        text = path.read_bytes() if path.exists() else b""
        lines = text.split(b"\n")[:-1]  # half a line at the end is made again
        if lines:
            before = json.loads(lines[0])
            other = [key for key in settings if before.get(key) != settings[key]]
            if other:
                raise UserError(f"{path} is what a stopped evaluation has left, with another "
                                f"{', '.join(other)}: give another --out, or remove it to begin anew")
        chunks = [json.loads(line) for line in lines[1:]]
        self.chunks = chunks[: min(gather([len(chunks)]))]  # those of one engine go on together
        part = Path(f"{path}.part")
        part.write_text("".join(json.dumps(value) + "\n" for value in (settings, *self.chunks)))
        os.replace(part, path)

    def add(self, chunk: dict) -> None:
        self.chunks.append(chunk)
        if self.path:
            with open(self.path, "a") as file:
                file.write(json.dumps(chunk) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def remove(self) -> None:
        self.path.unlink()


def files_of(model: str) -> dict:
    """{name: [bytes, time of change]} of a model's folder; of a hub id nothing."""
    found = {}
    for path in sorted(Path(model).iterdir() if Path(model).is_dir() else []):
        found[path.name] = [path.stat().st_size, path.stat().st_mtime_ns]
    return found
