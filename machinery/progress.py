"""How far a run or an evaluation is: a bar in a terminal, elsewhere a plain line now and then.

    step 14/40  2 min left  reward 0.448  pass@1 0.492  guided 0.294
"""

import math
import os
import sys
import time

from tqdm import tqdm

from machinery.ranks import rank

EVERY = 30  # seconds from one line to the next where no terminal is
WORDS = {"rollout/reward": "reward", "eval/pass@1": "pass@1", "guide/share": "guided"}


class Progress:
    """Counts from `start` to `total` on standard error, of several ranks on the first one's.

    In a terminal it is a line with a bar, drawn anew. Elsewhere, in a file say, it is a line of its own at
    most every 30 seconds, which no control character makes hard to read. `stays`: the bar stays when all is
    done, and the first and the last line are always written; else the bar goes, and a wait of less than 30
    seconds leaves nothing.
    """

    def __init__(self, what: str, start: int, total: int, stays: bool = True, now=time.monotonic):
        self.what, self.start, self.total, self.stays, self.now = what, start, total, stays, now
        self.values: dict[str, float] = {}
        self.began = now()
        self.spoke = -math.inf if stays else self.began
        # The bar gives way first where the terminal is narrow.
        self.bar = tqdm(desc=f"{what} {start}/{total}", initial=start, total=total, leave=stays,
                        bar_format="{desc} |{bar}|", dynamic_ncols=True,
                        disable=rank() > 0 or not is_drawable(sys.stderr))

    def at(self, done: int, metrics: dict = ()) -> None:
        """`done` of them are done. What `metrics` has of WORDS is shown until there is a newer value."""
        self.values |= {key: metrics[key] for key in WORDS if key in metrics}
        if not self.bar.disable:
            self.bar.n = done
            self.bar.set_description_str(self.line(done))  # and draws it
        elif rank() == 0 and self.is_due(done):
            self.spoke = self.now()
            print(self.line(done), file=sys.stderr, flush=True)

    def is_due(self, done: int) -> bool:
        """Whether a plain line is written now."""
        if done == self.total:
            return self.stays
        return self.now() - self.spoke >= EVERY

    def line(self, done: int) -> str:
        said = [f"{self.what} {done}/{self.total}"]
        if self.start < done < self.total:
            said.append(time_left((self.now() - self.began) * (self.total - done) / (done - self.start)))
        said += [f"{word} {self.values[key]:.3f}" for key, word in WORDS.items() if key in self.values]
        return "  ".join(said)

    def close(self) -> None:
        self.bar.close()


def is_drawable(stream) -> bool:
    """Whether it is a terminal with room for a bar: some have no rows, and tqdm shows nothing there."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError, AttributeError):  # a file, a notebook's stream
        return False
    return stream.isatty() and size.columns > 0 and size.lines > 2


def time_left(seconds: float) -> str:
    """
    >>> [time_left(8), time_left(130), time_left(9000)]
    ['8 s left', '2 min left', '2.5 h left']
    """
    if seconds < 90:
        return f"{seconds:.0f} s left"
    return f"{seconds / 60:.0f} min left" if seconds < 5400 else f"{seconds / 3600:.1f} h left"
