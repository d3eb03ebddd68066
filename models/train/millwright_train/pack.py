"""Asks the gateway's own program whether it can run a model, and has it write the file and its manifest.

Owns finding the program. The gateway's words about a model that it cannot run, the operator and the remedy, are passed on.
"""

import os
import shutil
import subprocess

from .errors import TrainError

# A model is loaded in seconds; a program that takes longer hangs.
TIMEOUT_S = 120


def program(named=None):
    """The `millwright` named, in the environment variable MILLWRIGHT, or on PATH; `None` when there is none."""
    if named is None:
        named = os.environ.get("MILLWRIGHT")
    if named is None:
        return shutil.which("millwright")
    found = shutil.which(named)
    if found is None:
        raise TrainError(
            f"`{named}` is no program; name the gateway's with --millwright or the environment variable MILLWRIGHT"
        )
    return found


def pack(millwright, model, folder, assets=()):
    """Packs `model` into `folder`; returns what the program printed. Raises `TrainError` with its words when it refuses."""
    command = [millwright, "model", "pack", str(model), "--out", str(folder)]
    for pattern in assets:
        command += ["--assets", pattern]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise TrainError(f"`{' '.join(command)}` gave no answer in {TIMEOUT_S} s") from error
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip()).removeprefix("millwright: ")
        raise TrainError(f"not packed: {words}")
    return done.stdout.strip()
