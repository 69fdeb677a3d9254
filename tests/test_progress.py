"""What a terminal shows of a run, and what is written where there is none."""

import fcntl
import io
import os
import pty
import select
import struct
import sys
import termios
from contextlib import contextmanager, redirect_stdout
from itertools import pairwise

import pytest
from tqdm import tqdm

from machinery.command import run_command
from machinery.progress import EVERY, Progress, time_left

GUIDED = {"rollout/reward": 0.5123, "guide/share": 0.214, "train/loss": 1.0}


class Seconds:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_line_has_what_is_known_and_the_time_left():
    seconds = Seconds()
    progress = Progress("step", 0, 140, now=seconds)
    progress.at(0, {"eval/pass@1": 0.5})
    assert progress.line(0) == "step 0/140  pass@1 0.500"
    seconds.now += 80
    progress.at(40, GUIDED)  # without an evaluation: the last one stays
    assert progress.line(40) == "step 40/140  3 min left  reward 0.512  pass@1 0.500  guided 0.214"
    progress.at(140, {**GUIDED, "eval/pass@1": 0.75})
    assert progress.line(140) == "step 140/140  reward 0.512  pass@1 0.750  guided 0.214"
    assert [time_left(s) for s in (0.4, 89, 90, 5399, 5400)] == [
        "0 s left", "89 s left", "2 min left", "90 min left", "1.5 h left"]


def test_a_resumed_run_reckons_with_the_time_of_this_start():
    seconds = Seconds()
    progress = Progress("step", 100, 140, now=seconds)
    seconds.now += 60
    assert progress.line(110) == "step 110/140  3 min left" and progress.line(100) == "step 100/140"


def test_without_a_terminal_there_is_a_line_at_most_every_30_seconds(capfd):
    seconds, told = Seconds(), []
    progress = Progress("step", 0, 100, now=seconds)
    progress.at(0, {"eval/pass@1": 0.5})
    assert capfd.readouterr().err == "step 0/100  pass@1 0.500\n"
    for step in range(100):
        seconds.now += 7
        progress.at(step + 1, GUIDED)
        if step == 50:
            tqdm.write("warning: something", file=sys.stderr)
        told += [(seconds.now, line) for line in capfd.readouterr().err.splitlines()]
    progress.close()
    warning = [line for _, line in told if "warning" in line]
    assert warning == ["warning: something"]
    lines = [(when, line) for when, line in told if "warning" not in line]
    times = [when for when, _ in lines]
    assert all(EVERY <= later - sooner < EVERY + 7 for sooner, later in pairwise(times))
    assert len(lines) == 20
    assert lines[0][1] == "step 5/100  11 min left  reward 0.512  pass@1 0.500  guided 0.214"
    assert lines[-1][1] == "step 100/100  reward 0.512  pass@1 0.500  guided 0.214"
    assert not {"\r", "\x1b"} & set("".join(line for _, line in told)) and capfd.readouterr().err == ""


@pytest.mark.parametrize("seconds_each, lines", [(1, 0), (20, 1), (40, 3)])
def test_an_evaluation_is_told_of_where_it_takes_long(seconds_each, lines, capfd):
    seconds = Seconds()
    progress = Progress("evaluated", 0, 256, stays=False, now=seconds)
    for done in (64, 128, 192, 256):
        seconds.now += seconds_each
        progress.at(done)
    progress.close()
    told = capfd.readouterr().err.splitlines()
    assert len(told) == lines and all(line.startswith("evaluated ") for line in told)


@contextmanager
def terminal(monkeypatch, rows=24, columns=90):
    """Standard error is a terminal of that size; a function says what it was sent since the last call."""
    inside, outside = pty.openpty()
    fcntl.ioctl(outside, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def sent() -> str:
        found = b""
        while select.select([inside], [], [], 0.2)[0]:  # it comes in pieces
            found += os.read(inside, 1_000_000)
        return found.decode()

    with open(outside, "w", buffering=1) as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        yield sent
    os.close(inside)


def test_in_a_terminal_a_bar_is_drawn_anew_and_warnings_are_whole_lines(monkeypatch):
    seconds = Seconds()
    with terminal(monkeypatch) as sent:
        progress = Progress("step", 0, 4, now=seconds)
        progress.at(0, {"eval/pass@1": 0.5})
        assert "step 0/4  pass@1 0.500 |" in sent()
        seconds.now += 40
        progress.at(1, GUIDED)
        shown = sent().split("\r")[-1]
        line = "step 1/4  2 min left  reward 0.512  pass@1 0.500  guided 0.214"
        assert shown.startswith(f"{line} |█") and len(shown) <= 90
        tqdm.write("warning: something", file=sys.stderr)
        assert "\rwarning: something\r\n" in sent()  # a terminal puts its own \r before \n
        inner = Progress("evaluated", 0, 2, stays=False)
        inner.at(1)
        assert "evaluated 1/2  " in sent()
        inner.close()
        progress.at(4, {"eval/pass@1": 0.625})
        progress.close()
        shown = sent()
    assert shown.endswith("\n") and "evaluated" not in shown
    assert "\rstep 4/4  reward 0.512  pass@1 0.625  guided 0.214 |███" in shown


def test_a_narrow_terminal_keeps_the_count_and_the_time_left(monkeypatch):
    seconds = Seconds()
    with terminal(monkeypatch, columns=40) as sent:
        progress = Progress("step", 0, 4, now=seconds)
        seconds.now += 40
        progress.at(1, GUIDED)
        shown = sent().split("\r")[-1]
        progress.close()
    assert shown.startswith("step 1/4  2 min left  reward 0.512") and len(shown) <= 40


@pytest.mark.parametrize("rows, columns", [(0, 0), (0, 80)])
def test_a_terminal_without_room_has_plain_lines(rows, columns, monkeypatch):
    with terminal(monkeypatch, rows, columns) as sent:
        progress = Progress("step", 0, 2)
        progress.at(0, {"eval/pass@1": 0.5})
        progress.close()
        assert sent() == "step 0/2  pass@1 0.500\r\n"  # a terminal puts its own \r before \n


def test_only_the_first_rank_speaks(monkeypatch, capfd):
    monkeypatch.setattr("machinery.progress.rank", lambda: 1)

    def speak() -> None:
        progress = Progress("step", 0, 1)
        progress.at(1, GUIDED)
        progress.close()

    speak()
    assert capfd.readouterr().err == ""
    with terminal(monkeypatch) as sent:
        speak()
        assert sent() == ""


def test_a_command_runs_where_its_output_is_no_file():
    with redirect_stdout(io.StringIO()) as out:  # as in a notebook
        run_command(lambda: print("done"))
    assert out.getvalue() == "done\n"
