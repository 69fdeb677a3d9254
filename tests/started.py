"""Scripts in processes of their own, without the seconds that each would take to import torch again.

A server imports the libraries once and forks itself for each script. Wholly new processes are started too, in
fewer tests.
"""

import multiprocessing
import os
import runpy
import sys

context = multiprocessing.get_context("forkserver")
# What every script imports, at its head or later.
context.set_forkserver_preload(["guide_grpo", "tyro", "transformers.models.qwen2.modeling_qwen2"])


def start(script: str, *options, out=os.devnull, err=os.devnull, **environment) -> multiprocessing.Process:
    """`python script options...`, with what it prints in the files `out` and `err`."""
    environment = {name: str(value) for name, value in environment.items()}
    options = [str(option) for option in options]
    process = context.Process(target=_run, args=(str(script), options, str(out), str(err), environment))
    process.start()
    return process


def _run(script: str, options: list[str], out: str, err: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    os.dup2(os.open(out, flags), 1)
    os.dup2(os.open(err, flags), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    sys.argv = [script, *options]
    runpy.run_path(script, run_name="__main__")
