"""`NAME.json`: what an exported file is and what it gets, defined, checked, written and read here.

It is written last: where it is, the file next to it is whole and was checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from kd_cli.errors import ConfigError
from kd_cli.files import DamagedError, file_hash, read_json, write_json
from kd_cli.runs.record import Part, may_say, part, says
from kd_cli.terminal import shown

SCHEMA_VERSION = 1
FAILED = "failed"  # the folder of files that were converted wrongly


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceRecord(Part):
    what: str = says("the run's directory, or the file")
    run_id: str | None = may_say("of a run")
    network: str = says("its name")
    sha256: str = says("SHA-256 of the .keras file")
    weights_sha256: str = says("SHA-256 of its weights, as in metrics.json")
    bytes: int = says("of the .keras file")


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorRecord(Part):
    name: str = says("as the runtime knows it")
    dtype: str = says("of its numbers")
    shape: list[int] = says("its sizes; -1 for any")
    scale: float | None = may_say("a whole number q stands for scale x (q - zero_point)")
    zero_point: int | None = may_say("the whole number that stands for 0")


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationRecord(Part):
    images: int = says("training images that set the ranges")
    seed: int = says("of their choice")
    rows_sha256: str = says("SHA-256 of their rows in the training images, int64")
    pixels_sha256: str = says("SHA-256 of their pixels, uint8")
    changed_pixels: int = says("pixels that were set to 0 or 255, so that all bytes occur")


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferenceRecord(Part):
    test: dict = says("quality of the Keras model on the same images")
    latency: dict = says("as of the file")
    peak_memory_bytes: int = says("as of the file")


@dataclass(frozen=True, kw_only=True, eq=False)
class ShownTeacher(Part):
    what: str = says("its run's directory, or its file")
    network: str = says("its name")
    weights_sha256: str = says("SHA-256 of its weights, as in metrics.json")
    bytes: int = says("of its weights in the page, before they are written as text")
    images: int = says("test images, the first ones, on which it was compared with Keras")
    agreement: float = says("share of them with the same top class")
    largest_difference: float = says("of a logit")


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportRecord(Part):
    """What `NAME.json` holds."""

    schema_version: int = says("of this file")
    format: str = says("litert, ...")
    precision: str = says("float32, float16, dynamic or int8")
    softmax: bool = says("whether probabilities come out")
    file: str = says("its name")
    bytes: int = says("its size")
    sha256: str = says("SHA-256 of the file")
    source: SourceRecord = says("what it was made of")
    inputs: list[TensorRecord] = says("of the file; the image is raw pixels 0..255")
    outputs: list[TensorRecord] = says("of the file, in the order of class_names")
    class_names: list[str] = says("names of the classes in the order of the outputs")
    dataset: dict = says("name, image_shape, test images, fingerprint, split_fingerprint")
    calibration: CalibrationRecord | None = may_say("of int8")
    teacher: ShownTeacher | None = may_say("of a page: the teacher beside the student")
    test: dict = says("of the file: accuracy, nll, agreement with Keras, largest_difference, ...")
    latency: dict = says("one image with one_thread and all_threads: median_ms, p95_ms, ...")
    peak_memory_bytes: int = says("of a process with one thread: Python, runtime and file")
    keras: ReferenceRecord = says("the Keras model beside it; TensorFlow runs it")
    runtime: str = says("what ran the file")
    device: str = says("where Keras computed")
    cores: int = says("that this process may use")
    load_average: float = says("of the last minute, before the measurement")
    git_commit: str | None = says("of the working directory")
    versions: dict = says("of Python and packages")
    warnings: list[str] = says("what kd warned about")

    def write(self, path: Path) -> None:
        """Writes it, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """What a `NAME.json` holds; None where there is none.

        Raises:
            DamagedError: It can't be read, or is of another version.
        """
        remedy = "remove it and export again"
        content = read_json(path, remedy)
        if content is None:
            return None
        if content.get("schema_version") != SCHEMA_VERSION:
            version = content.get("schema_version")
            raise DamagedError(path, f"its schema_version is {version}", remedy)
        try:
            return part(cls, content)
        except ValueError as error:
            raise DamagedError(path, str(error), remedy) from error


def file_name(
    role: str, kind: str, suffix: str, precision: str, changed: dict[str, Any] | None = None
) -> str:
    """The file's name: `student-int8.tflite`; what differs from its default stands in it.

    Args:
        role: `student` or `teacher`.
        kind: The format.
        suffix: Of the format.
        precision: Of the file.
        changed: Settings that count and are not at their defaults, by key.
    """
    words = [role, precision] if kind == "litert" else [role, kind, precision]
    words += [key if value is True else f"{key}{value}" for key, value in (changed or {}).items()]
    return "-".join(words) + suffix


def finished(path: Path, sha256: str) -> ExportRecord | None:
    """The record of a file that was exported before; None where it must be made.

    Args:
        path: Of the file; its record is `path` with `.json`.
        sha256: Of the `.keras` file now.

    Raises:
        ConfigError: The `.keras` file or the exported one has changed since, or the record can't
            be read.
    """
    place = record_path(path)
    record = ExportRecord.read(place)
    if record is None or not path.exists():
        return None
    if record.source.sha256 != sha256:
        raise ConfigError(
            f"{record.source.what}: the network has changed since {shown(path)} was made of it "
            f"(SHA-256 {record.source.sha256[:12]}, now {sha256[:12]}); remove {shown(place)} to "
            "export it anew"
        )
    now = file_hash(path)
    if record.sha256 != now:
        raise ConfigError(
            f"{shown(path)} was altered after it was exported (SHA-256 {record.sha256[:12]}, now "
            f"{now[:12]}); remove it to export it anew"
        )
    return record


def record_path(path: Path) -> Path:
    """Where the record of a file lies."""
    return path.with_suffix(".json")
