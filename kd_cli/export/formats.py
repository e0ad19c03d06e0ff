"""The table of formats. Nothing here imports a runtime, so a mistake is told at once."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from kd_cli.errors import ConfigError


class CantConvertError(Exception):
    """What stands in the way of a conversion, in one line."""


@dataclass(frozen=True)
class Format:
    """A row of the table.

    Attributes:
        title: For people.
        suffix: Of its files.
        precisions: Of `config.keys.FILE_PRECISIONS` those that it can hold.
        module: The file in this folder that writes and opens it.
        extra: Of kd's package, with which its packages are installed; empty where none is needed.
        packages: What that extra brings, as they are imported.
        versions: Packages whose versions count, as pip names them.
    """

    title: str
    suffix: str
    precisions: tuple[str, ...]
    module: str
    extra: str = ""
    packages: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()

    def require(self) -> None:
        """Raises ConfigError when a package is missing."""
        missing = [package for package in self.packages if find_spec(package) is None]
        if missing:
            raise ConfigError(
                f"{self.title} needs the package {missing[0]}; type: pip install "
                f"{' '.join(self.packages)} (the extra {self.extra})"
            )

    def load(self) -> ModuleType:
        """Its file in this folder; imports TensorFlow."""
        return importlib.import_module(f"kd_cli.export.{self.module}")

    def installed(self) -> dict[str, str]:
        """The versions that are here."""
        found = {}
        for name in self.versions:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue  # TensorFlow's own interpreter does without
        return found


FORMATS = {
    "litert": Format(
        "LiteRT",
        ".tflite",
        ("float32", "float16", "dynamic", "int8"),
        "litert",
        versions=("ai-edge-litert",),
    ),
    "onnx": Format(
        "ONNX",
        ".onnx",
        ("float32", "int8"),
        "onnx_file",
        extra="onnx",
        packages=("onnx", "onnxruntime", "tf2onnx"),
        versions=("onnx", "onnxruntime", "tf2onnx"),
    ),
    "saved_model": Format("SavedModel", "", ("float32",), "saved_model"),
    "page": Format(
        "page",
        ".html",
        ("float32", "float16"),
        "page",
        extra="page",
        packages=("py_mini_racer",),
        versions=("mini-racer",),
    ),
}


def kind_of(path: Path) -> str:
    """The format of a file or folder by its name; empty for none of them."""
    if path.is_dir():
        return "saved_model" if (path / "saved_model.pb").is_file() else ""
    return next((n for n, row in FORMATS.items() if row.suffix and row.suffix == path.suffix), "")


def names() -> str:
    """What `kind_of` knows, for messages."""
    return ", ".join(row.suffix or row.title for row in FORMATS.values())


def check(name: str, precision: str) -> Format:
    """The row of a format.

    Raises:
        ConfigError: It can't hold this precision, or a package is missing.
    """
    row = FORMATS[name]
    if precision not in row.precisions:
        raise ConfigError(
            f"precision={precision}: format={name} holds {' or '.join(row.precisions)}; leave "
            "precision out, or type format=litert"
        )
    return row
