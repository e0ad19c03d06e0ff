"""What a run was computed with: versions, and the commit of the working directory."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from typing import Any


def environment() -> dict[str, Any]:
    """Git commit of the working directory and the versions of what computes."""
    return {"git_commit": _git_commit(), "versions": versions()}


def versions() -> dict[str, str]:
    """Of Python, and of the packages that compute."""
    names = {"kd": "kd-cli", "hydra": "hydra-core"}
    found = {"python": platform.python_version()}
    for key in ("kd", "tensorflow", "keras", "numpy", "hydra"):
        try:
            found[key] = metadata.version(names.get(key, key))
        except metadata.PackageNotFoundError:
            found[key] = "not installed as a package"
    return found


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def cores() -> int:
    """How many cores this process may use."""
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else (os.cpu_count() or 1)
