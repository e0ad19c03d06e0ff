"""Fixtures: a way to type `kd` in a process that has TensorFlow already, and small data."""

from __future__ import annotations

import copy
import errno
import functools
import gc
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores; before TensorFlow
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import absl.logging
import numpy as np
import pytest
from hydra._internal import defaults_list
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from omegaconf import DictConfig, OmegaConf

from kd_cli import cli
from kd_cli.commands.arguments import arrange
from kd_cli.config.check import check
from kd_cli.config.compose import compose, conf_dir
from kd_cli.runs.record import Record
from kd_cli.runs.resolvers import register_resolvers

# absl (of TensorFlow) closes a stream that is not the current stderr when logging is configured
# again, and while a test runs that stream is pytest's own.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__

# Fewer walks over young objects: a composition or a trace makes a hundred thousand that stay.
gc.set_threshold(20_000, 20, 50)


def compose_quickly() -> None:
    """Hydra composes the same from files that it has read before, in two thirds of the time.

    For each composition it parses every file again, and for each file it lists what the defaults
    of others may refer to, also where none does. The tests compose some thousand times.
    """
    read, listed = FileConfigSource.load_config, defaults_list._create_interpolation_map
    nothing = OmegaConf.create()

    def load_config(self, config_path):
        if self.path != str(conf_dir()):
            return read(self, config_path)
        return copy.deepcopy(known(self.provider, config_path))

    @functools.cache
    def known(provider, config_path):
        return read(FileConfigSource(provider, f"file://{conf_dir()}"), config_path)

    def interpolation_map(overrides, defaults, self_added):
        if any(one.is_interpolation() for one in defaults):
            return listed(overrides, defaults, self_added)
        return nothing

    FileConfigSource.load_config = load_config
    defaults_list._create_interpolation_map = interpolation_map


compose_quickly()


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

    Each training collects garbage. After some hundred tests that took four fifths of the time. A
    test during which nothing was collected has made few objects, and leaves them to a later one.
    """
    before = gc.get_stats()[0]["collections"]
    yield
    if gc.get_stats()[0]["collections"] > before:
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


_MADE: dict[tuple[str, ...], tuple[Path, str]] = {}


@pytest.fixture
def once(kd: Callable[..., Typed], work: Path, tmp_path_factory: pytest.TempPathFactory):
    """Types a command whose outputs a test begins with: `once("distill", *small)`.

    A process runs each command once, in the folder of the first test that asks. The others get a
    copy, with their own folder where a file names the first. The data must be those of `npz`.
    """

    def type_it(*words: str) -> None:
        key, outputs = tuple(word.replace(str(work), "") for word in words), work / "outputs"
        assert not outputs.exists()
        if key not in _MADE:
            done = kd(*words)
            assert done.code == 0, done.err
            _MADE[key] = tmp_path_factory.mktemp("once") / "outputs", str(work)
            shutil.copytree(outputs, _MADE[key][0], symlinks=True)
            return
        copy, there = _MADE[key]
        shutil.copytree(copy, outputs, symlinks=True)
        for path in outputs.rglob("*"):
            if path.suffix in (".json", ".yaml", ".log") and path.is_file():
                path.write_text(path.read_text().replace(there, str(work)))

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


@pytest.fixture
def taught(once, small: list[str]) -> None:
    """The teacher of `small` is there already, where training it is not the point."""
    once("train-teacher", *small[:4], "epochs=2")


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
