"""Latency and peak memory of a file, each measured in a process of its own.

A runtime fixes its threads when it starts, and memory can be told apart only between processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from kd_cli.errors import RunFailed
from kd_cli.runs.environment import cores

_RUNNER = Path(__file__).with_name("runner.py")
SECONDS = 2.0  # of runs, after the first thirty
_LONGEST = 600.0


def measure(kind: str, file: Path, image: np.ndarray) -> dict[str, Any]:
    """What one image costs on this machine's CPU.

    Args:
        kind: The runtime: a name of `runner.RUNTIMES`.
        file: What it runs.
        image: [1, H, W, C] as the file takes it.

    Returns:
        latency: `one_thread` and `all_threads`, each with median_ms, p95_ms, runs and threads;
        peak_memory_bytes: of the process with one thread: Python, NumPy, the runtime and the file.

    Raises:
        RunFailed: The runtime broke.
    """
    found: dict[str, Any] = {"latency": {}}
    with tempfile.TemporaryDirectory(prefix="kd-") as folder:
        place = Path(folder) / "image.npy"
        np.save(place, image)
        most = 1 if kind == "page" else cores()  # JavaScript computes with one
        for name, threads in (("one_thread", 1), ("all_threads", most)):
            taken = _run(kind, file, place, threads)
            memory = taken.pop("peak_memory_bytes")
            found.setdefault("peak_memory_bytes", memory)
            found["latency"][name] = {**taken, "threads": threads}
    return found


def _run(kind: str, file: Path, image: Path, threads: int) -> dict[str, Any]:
    asked = {
        "format": kind,
        "file": str(file),
        "image": str(image),
        "threads": threads,
        "seconds": SECONDS,
    }
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_NUM_INTRAOP_THREADS": str(threads)}
    try:
        # -P: the modules beside the runner must not hide packages of their names.
        done = subprocess.run(
            [sys.executable, "-P", str(_RUNNER), json.dumps(asked)],
            capture_output=True,
            text=True,
            env={**os.environ, **quiet},
            timeout=_LONGEST,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RunFailed(
            f"{file.name}: an image took longer than {_LONGEST / 30:.0f} s with {threads} threads"
        ) from error
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise RunFailed(f"{file.name} can't be run in a process of its own: {last}")
    return json.loads(done.stdout.splitlines()[-1])
