"""A page that a person can try: one HTML file with the network, and a picture to give to it.

`page.html` is the page, `page.js` what happens in it, and `network.js` computes. A browser needs
nothing else, and no connection. To check a page, V8, the engine of Chromium, runs `network.js`.
"""

from __future__ import annotations

import base64
import json
import math
import re
import weakref
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from kd_cli.errors import ConfigError, first_line
from kd_cli.export.formats import CantConvertError
from kd_cli.export.graph import IMAGE, LOGITS, Graph
from kd_cli.export.operations import Program, program
from kd_cli.export.tensors import Opened, Tensor

# Bytes of weights, as they are stored: of the network that is exported, and of a teacher beside it.
MOST_BYTES = 32_000_000
MOST_OF_TEACHER = 8_000_000
# Constants of fewer numbers, such as scales of the input, are not rounded to float16.
_FEW = 64
_DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Beside:
    """What a page shows beside the network.

    Attributes:
        dataset: Its name.
        class_names: In the order of the logits.
        name, role: Of the network; the role is `student` or `teacher`.
        examples: Test images [n, H, W, C] uint8.
        labels: [n] class numbers of them.
        drawing: How a drawing becomes an image: from `drawing.measure`; None for no drawing.
        teacher: Name and operations of the teacher; None where it is left out.
    """

    dataset: str
    class_names: tuple[str, ...]
    name: str
    role: str
    examples: np.ndarray
    labels: np.ndarray
    drawing: dict[str, Any] | None
    teacher: tuple[str, Program] | None


@dataclass(frozen=True)
class PageGraph(Graph):
    """A network, and what a page shows `beside` it."""

    beside: Beside


def convert(graph: PageGraph, path: Path, precision: str, images: np.ndarray | None) -> None:
    """Writes a network as a page.

    Args:
        graph: What is converted.
        path: The file.
        precision: Of the weights: `float32` or `float16`. The numbers in between are float32.
        images: Of no use.

    Raises:
        CantConvertError: An operation that `operations` has not, or too many weights.
    """
    found, beside = program(graph.model, graph.shape), graph.beside
    count = stored_bytes(found, precision)
    if count > MOST_BYTES:
        raise CantConvertError(f"its weights take {count:,} bytes; a page holds {MOST_BYTES:,}")
    networks = [_stored(found, precision, beside.name, beside.role)]
    if beside.teacher:
        name, of_teacher = beside.teacher
        networks.append(_stored(of_teacher, precision, name, "teacher"))
    data = {
        "shape": list(graph.shape),
        "dataset": beside.dataset,
        "classes": list(beside.class_names),
        "networks": networks,
        "examples": [
            {"pixels": _text(image), "label": int(label)}
            for image, label in zip(beside.examples, beside.labels, strict=True)
        ],
        "drawing": beside.drawing,
    }
    parts = {name: (_HERE / name).read_text("utf-8") for name in ("network.js", "page.js")}
    # A class may be called `</script>`.
    parts["data"] = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    written = re.sub(
        r"\{\{([\w.]+)\}\}", lambda found: parts[found[1]], (_HERE / "page.html").read_text("utf-8")
    )
    path.write_text(written, "utf-8")


def stored_bytes(found: Program, precision: str) -> int:
    """Bytes of the weights in a page, before they are written as text."""
    return sum(_rounded(array, precision).nbytes for array in found.constants.values())


def _rounded(array: np.ndarray, precision: str) -> np.ndarray:
    kind = "<f2" if precision == "float16" and array.size >= _FEW else "<f4"
    with np.errstate(over="ignore"):  # the check finds infinite weights
        return array.astype(kind)


def _stored(found: Program, precision: str, name: str, role: str) -> dict[str, Any]:
    """A network as JSON."""
    arrays = {number: _rounded(array, precision) for number, array in found.constants.items()}
    return {
        "name": name,
        "role": role,
        "image": found.image,
        "logits": found.logits,
        "operations": found.operations,
        "constants": [
            {"value": number, "count": array.size, "half": array.itemsize == 2}
            for number, array in arrays.items()
        ],
        "weights": base64.b64encode(b"".join(a.tobytes() for a in arrays.values())).decode(),
    }


def _text(image: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(image).data).decode()


def open_file(path: Path, threads: int | None = None) -> Opened:
    """Opens a page's network for inference. The scripts of the page are not run, but kd's own.

    Args:
        path: The file.
        threads: Of no use: JavaScript computes with one.

    Raises:
        ConfigError: It is no page of kd's, or is damaged.
    """
    return opened(path)


def opened(path: Path, number: int = 0) -> Opened:
    """As `open_file`, of the page's network `number`: 1 is the teacher.

    Raises:
        ConfigError: As `open_file`.
    """
    from py_mini_racer import JSEvalException, MiniRacer

    # Its threads must end before Python does.
    engine = MiniRacer()
    try:
        found = _DATA.search(path.read_text("utf-8"))
        if found is None:
            raise ValueError("it holds no network")
        data = json.loads(found[1])
        shape = tuple(int(size) for size in data["shape"])
        classes = len(data["classes"])
        engine.eval((_HERE / "network.js").read_text("utf-8"))
        engine.eval(f"const run = kd.network({json.dumps(data['networks'][number])});")
        engine.eval(
            "const all = (images) => JSON.stringify(images.map((image) => [...run(image)]));"
        )
        engine.eval(f"run(new Float32Array({math.prod(shape)}));")
    except (OSError, ValueError, KeyError, IndexError, TypeError, JSEvalException) as error:
        engine.close()
        why = first_line(error)
        raise ConfigError(f"{path} can't be read as a page of kd's: {why}") from error

    def run(numbers: np.ndarray) -> np.ndarray:
        try:
            text = engine.call("all", numbers.reshape(len(numbers), -1).tolist())
        except JSEvalException as error:
            raise ConfigError(f"{path}: {first_line(error)}") from error
        logits = [[np.nan if value is None else value for value in row] for row in json.loads(text)]
        return np.array(logits, np.float32).reshape(len(numbers), classes)

    weakref.finalize(run, engine.close)
    return Opened(
        Tensor(IMAGE, "float32", (None, *shape)),
        Tensor(LOGITS, "float32", (None, classes)),
        run,
        f"mini-racer {metadata.version('mini-racer')}, V8 {engine.v8_version}",
    )
