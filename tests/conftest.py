"""Fixtures: a way to type `kd` in a process that has TensorFlow already, and small data."""

from __future__ import annotations

import errno
import functools
import gc
import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores; before TensorFlow
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import absl.logging
import numpy as np
import pytest
from omegaconf import DictConfig

from kd_cli import cli
from kd_cli.commands.arguments import arrange
from kd_cli.config.check import check
from kd_cli.config.compose import compose
from kd_cli.runs.record import Record
from kd_cli.runs.resolvers import register_resolvers

# absl (of TensorFlow) closes a stream that is not the current stderr when logging is configured
# again, and while a test runs that stream is pytest's own.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__


@dataclass
class Typed:
    """What a command printed and left."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a user's mistake, which may follow messages but no traceback."""
        *before, last = self.err.splitlines()
        assert last.startswith("kd: error: "), self.err
        assert not any("rror" in line or "Traceback" in line for line in before), self.err
        return last.removeprefix("kd: error: ")


@pytest.fixture(autouse=True)
def frozen():
    """What a test leaves (graphs, modules) is not walked over again by the collections of others.

    Each training collects garbage. After some hundred tests that took four fifths of the time.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory; decoded images are kept inside it."""
    monkeypatch.chdir(tmp_path)
    for name in ("TFDS_DATA_DIR", "KD_CACHE_DIR", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def kd(work: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Typed]:
    """Types a command: `kd("distill", "epochs=1")`."""

    def type_it(*words: str) -> Typed:
        capfd.readouterr()
        code = cli.main(list(words))
        out, err = capfd.readouterr()
        # Hydra's handlers hold this test's streams, which are closed when it ends.
        for handler in logging.root.handlers[:]:
            if type(handler) in (logging.StreamHandler, logging.FileHandler):
                logging.root.removeHandler(handler)
                handler.close()
        return Typed(code, out, err)

    return type_it


def assert_refused(kd: Callable[..., Typed], work: Path, words: list[str], *texts: str) -> None:
    """A mistake is one line with these texts, exit code 2, and leaves nothing behind."""
    done = kd(*words)
    assert done.code == 2
    for text in texts:
        assert text in done.error
    assert done.out == "" and len(done.err.splitlines()) == 1
    assert list(work.iterdir()) == []


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    """A learnable set of 4 classes: a bright quarter of a 6x6 grey image, 160 + 40 images."""
    generator = np.random.default_rng(5)

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 4
        images = generator.integers(0, 120, (count, 6, 6, 1))
        for image, label in zip(images, labels, strict=True):
            row, column = 3 * (label // 2), 3 * (label % 2)
            image[row : row + 3, column : column + 3] += 60
        return images.astype(np.uint8), labels

    (x_train, y_train), (x_test, y_test) = part(160), part(40)
    path = tmp_path / "quarters.npz"
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


class Disk:
    """Counts flushes and renames, and refuses one of them: the disk is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.refused = 0, None
        for name in ("fsync", "replace"):
            real = getattr(os, name)
            monkeypatch.setattr(os, name, lambda *args, real=real: self.act(real, *args))

    def act(self, real, *args):
        self.count += 1
        if self.count == self.refused:
            raise OSError(errno.ENOSPC, "No space left on device", str(args[0]))
        return real(*args)


def plan_of(*words: str) -> DictConfig:
    """The plan of a command as typed: `plan_of("distill", "alpha=0.5")`; read-only, made once."""
    return _plan(Path.cwd(), words)


@functools.cache
def _plan(folder: Path, words: tuple[str, ...]) -> DictConfig:
    register_resolvers()
    request = arrange(list(words))
    cfg = compose(request.command.config, request.overrides, request.config_dir)
    return check(cfg, request.overrides)


# What dataset=tfds needs to know of a set.
TFDS = ("dataset.name=toy", "dataset.image_shape=[9,9,3]", "dataset.num_classes=2")
# Small networks and few epochs for runs whose accuracy is not the point.
SMALL = ("teacher=mlp", "teacher.network.units=[16]", "epochs=2", "teacher.training.epochs=2")


@pytest.fixture
def small(npz: Path) -> list[str]:
    """Overrides for a run of about a second on `npz`."""
    return ["dataset=npz", f"dataset.path={npz}", *SMALL]


def read_record(folder: Path) -> dict | None:
    """The content of a run's metrics.json, in which the package reads the same; None without it."""
    path = folder / "metrics.json"
    content = json.loads(path.read_text()) if path.is_file() else None
    assert Record.read(folder) == content
    return content


def only_run(folder: Path) -> tuple[Path, dict]:
    """The single finished run below a folder, and its metrics."""
    (path,) = folder.rglob("metrics.json")
    return path.parent, read_record(path.parent)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real data (tfds/ and flowers12/), from KD_TEST_DATA."""
    folder = os.environ.get("KD_TEST_DATA")
    if folder:
        return Path(folder)
    if os.environ.get("KD_REQUIRE_DATA") == "1":
        pytest.fail("KD_REQUIRE_DATA=1 but KD_TEST_DATA does not name a folder")
    pytest.skip("real data: set KD_TEST_DATA to a folder with tfds/ and flowers12/")
