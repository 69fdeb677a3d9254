"""Scripts in processes of their own, without the seconds that each would take to import torch again.

A server imports the libraries once and forks itself for each script. test_runs.py starts wholly new processes
too, in fewer tests.
"""

import multiprocessing
import os
import runpy
import sys

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["guide_grpo"])


def start(script: str, *options, out=os.devnull, err=os.devnull) -> multiprocessing.Process:
    """`python script options...`, with what it prints in the files `out` and `err`."""
    process = context.Process(target=_run, args=(script, list(map(str, options)), str(out), str(err)))
    process.start()
    return process


def _run(script: str, options: list[str], out: str, err: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    os.dup2(os.open(out, flags), 1)
    os.dup2(os.open(err, flags), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    sys.argv = [script, *options]
    runpy.run_path(script, run_name="__main__")
