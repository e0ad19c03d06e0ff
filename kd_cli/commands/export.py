"""`kd export WHAT`: a finished run or any `.keras` file, written for another runtime.

The file is run over the test split by that runtime before it gets its name, and `NAME.json` is
written last. They lie in the run's `export/`, or below outputs/export/ for a `.keras` file.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from kd_cli.commands import export_page
from kd_cli.commands.evaluate_network import keras_model
from kd_cli.commands.evaluate_target import (
    Target,
    check_same,
    find,
    plan_of,
    with_data,
)
from kd_cli.commands.sweep import expand
from kd_cli.commands.table import Request
from kd_cli.config.inputs import Tokens, inputs_of
from kd_cli.config.keys import Config
from kd_cli.config.overrides import place_of
from kd_cli.config.row import is_name
from kd_cli.data.dataset import Dataset, load_dataset
from kd_cli.device import set_up
from kd_cli.errors import ConfigError, RunFailed, first_line
from kd_cli.export import check, cost, formats
from kd_cli.export.formats import CantConvertError, Format
from kd_cli.export.record import FAILED, ExportRecord, file_name, finished, record_path
from kd_cli.files import (
    bytes_of,
    discard,
    file_hash,
    locked,
    remove_leftovers,
    sync_folder,
    temporary_of,
)
from kd_cli.runs import identity
from kd_cli.runs.environment import cores, environment
from kd_cli.runs.quality import quality
from kd_cli.runs.session import Session
from kd_cli.terminal import messages, print_table, shown
from kd_cli.training import assembly

if TYPE_CHECKING:
    from kd_cli.export.calibration import Calibration
    from kd_cli.export.tensors import Opened, Tensor
    from kd_cli.networks.predict import Prepare

log = logging.getLogger("kd")


def run(request: Request) -> int:
    """Exports the run or file that the command names, and checks the result.

    With `--multirun` it makes a file for each combination of comma-separated values; the others are
    made where one fails.

    Raises:
        ConfigError: What can't be exported, or does not fit its data.
        RunFailed: The network can't be converted, or was converted wrongly.
    """
    points = [request.overrides]
    if request.flags == ["--multirun"]:
        points = expand(request.overrides, request.config_dir)[0]
        request = replace(request, flags=[])
    asked = [_asked(replace(request, overrides=point)) for point in points]  # mistakes come first
    failed = []
    for plan, target, row in asked:
        try:
            record, path = _one(plan, target, row)
        except RunFailed as error:
            failed.append(error)
            if len(asked) > 1:
                print(f"kd: failed: {error}", file=sys.stderr)
            continue
        _print(record, path)
    if failed and len(asked) > 1:
        raise RunFailed(f"{len(failed)} of {len(asked)} exports failed")
    if failed:
        raise failed[0]
    return 0


def _asked(request: Request) -> tuple[DictConfig, Target, Format]:
    """What is exported, on which data, in which format; checked without TensorFlow."""
    plan = plan_of(request, "writes")
    row = formats.check(plan.format, plan.precision)
    if plan.format == "page" and plan.softmax:
        raise ConfigError("softmax=true changes nothing: a page shows probabilities; leave it out")
    for override in request.overrides if plan.precision != "int8" else ():
        if place_of(override) in ("calibration", "seed"):
            raise ConfigError(
                f"{override} changes nothing: precision={plan.precision} needs no calibration"
            )
    target = find(plan.what)
    _refuse_other_data(request.overrides, target)
    plan, _ = with_data(plan, request.overrides, target)
    if isinstance(inputs_of(plan.dataset), Tokens):
        raise ConfigError(
            f"{plan.what} takes texts, and export writes networks of images; Keras opens its "
            "model.keras (kd guide text)"
        )
    return plan, target, row


def _one(plan: DictConfig, target: Target, row: Format) -> tuple[ExportRecord, Path]:
    """A file and its record: made now, or before."""
    path, sha256 = _place(plan, target, row), file_hash(target.file)
    try:
        with messages():
            record = finished(path, sha256)
            if record is not None:
                log.info("exported before; remove the file to export it anew")
                return record, path
            row.require()
            with locked(path.parent / ".export", "exports here"):
                record = finished(path, sha256)  # of the process that held the lock
                if record is None:
                    remove_leftovers(path.parent)
                    record = _export(plan, target, row, path, sha256)
            return record, path
    except ConfigError:
        _leave_nothing(path.parent)
        raise
    except (RunFailed, OSError):
        raise
    except Exception as error:
        hint = "HYDRA_FULL_ERROR=1 shows the traceback"
        raise RunFailed(f"{first_line(error)} ({hint})") from error


def _leave_nothing(folder: Path) -> None:
    """Removes a folder in which there is nothing but the lock."""
    if folder.is_dir() and [path.name for path in folder.iterdir()] == [".export.lock"]:
        discard(folder)


def _refuse_other_data(typed: list[str], target: Target) -> None:
    """A run's file is calibrated and checked on the run's own data."""
    for override in typed if target.record else ():
        if place_of(override).split(".")[0] in ("dataset", "augment"):
            raise ConfigError(
                f"{override}: a run is exported with its own data; to use other data, give its "
                f"file: kd export {shown(target.file)} {override}"
            )


def _place(plan: DictConfig, target: Target, row: Format) -> Path:
    """Where the exported file goes; settings that count and are not at their defaults are in it."""
    keys = ("softmax", "calibration", "seed")
    default = Config.__dataclass_fields__
    changed = {key: plan[key] for key in keys if plan[key] != default[key].default}
    if target.record:
        name = file_name(target.role, plan.format, row.suffix, plan.precision, changed)
        return target.run / "export" / name
    plain = OmegaConf.to_container(plan)
    made_of = {
        "file": identity.content(target.file),
        "dataset": identity.dataset_spec(plan.dataset),
        "augment": {key: plain["augment"][key] for key in ("evaluate", "size")},
        "input": plain["input"],
    }
    stem = target.name if is_name(target.name) else identity.digest(target.name)
    name = file_name(stem, plan.format, row.suffix, plan.precision, changed)
    return Path(plan.outputs) / "export" / f"{stem}-{identity.digest(made_of)}" / name


def _export(plan: DictConfig, target: Target, row: Format, path: Path, sha256: str) -> ExportRecord:
    """Converts, checks, and gives the file its name; then writes its record."""
    dataset = load_dataset(plan.dataset, plan.device)
    if target.record:
        check_same(plan, target.record, dataset)
    device = set_up(plan.device)
    from kd_cli.export import calibration, graph
    from kd_cli.networks.predict import predict_rows, predictor
    from kd_cli.networks.wrap import CantCopyError, in_float32

    runtime = row.load()
    session = Session()
    views = assembly.augmentation(plan, dataset, session)
    prepare = views.evaluate if views is not None else None
    model, weights = keras_model(plan, target, dataset)
    added = None
    shape = dataset.inputs.sized(plan.augment.size).shape
    drawn = None
    if plan.precision == "int8":
        drawn = calibration.draw(dataset.train, plan.calibration, plan.seed, prepare)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = temporary_of(path)
    try:
        with tempfile.TemporaryDirectory(prefix="kd-") as scratch:
            log.info("converting to %s, %s", row.title, plan.precision)
            try:
                model = in_float32(model)
                source = graph.write(model, shape, plan.softmax, Path(scratch) / "saved_model")
                if plan.format == "page":
                    added = export_page.beside(plan, target, dataset, prepare, shape, session)
                    source = runtime.PageGraph(**vars(source), beside=added.beside)
                runtime.convert(source, made, plan.precision, drawn.images if drawn else None)
                opened = runtime.open_file(made)
            except (
                CantConvertError,
                CantCopyError,
                ConfigError,
            ) as error:  # (the latter of the new file)
                raise RunFailed(
                    f"{plan.what} can't be exported to {row.title} with precision="
                    f"{plan.precision}: {str(error).replace(str(made), 'the new file')}"
                ) from error
            log.info("running it over %s test images", f"{len(dataset.test):,}")
            reference = predict_rows(predictor(model), dataset.test, prepare)
            outputs = _outputs(opened, dataset, prepare)
            load = os.getloadavg()[0]  # of the last minute, before the measurement
            image = calibration.prepared(
                dataset.test.images, dataset.test.rows[:1], prepare
            ).astype(np.float32)
            log.info("measuring latency and memory")
            costs = {
                "keras": cost.measure("saved_model", source.folder, image),
                "file": cost.measure(plan.format, made, opened.image.numbers(image)),
            }
        result = _result(plan, target, dataset, opened, outputs, reference, drawn)
        if added is not None:
            result["teacher"] = export_page.check_teacher(plan, added, made, dataset, prepare)
            result["warnings"] += added.left_out
        result |= costs["file"] | {
            "file": path.name,
            "bytes": bytes_of(made),
            "sha256": file_hash(made),
            "device": device,
            "load_average": load,
        }
        result["source"] |= {"sha256": sha256, "weights_sha256": weights}
        result["keras"] |= costs["keras"]
        result["versions"] |= row.installed()
        why = check.failure(plan.precision, result["test"])
        if why:
            path = path.parent / FAILED / path.name
            path.parent.mkdir(exist_ok=True)
        _finish(made, path, ExportRecord(**result))
    finally:
        discard(made)
    if why:
        raise RunFailed(
            f"{plan.what}: the {row.title} file is not what Keras computes: {why}; it is kept as "
            f"{shown(path)}"
        )
    for warning in result["warnings"]:
        log.warning("%s", warning)
    return ExportRecord(**result)


def _outputs(opened: Opened, dataset: Dataset, prepare: Prepare | None) -> np.ndarray:
    """What the file says of the test split, [n, K] real numbers."""
    from kd_cli.networks.predict import predict_batches

    def predict(images: Any) -> Any:
        import tensorflow as tf

        return tf.constant(opened(images.numpy()))

    return np.concatenate(list(predict_batches(predict, dataset.test, prepare)))


def _result(
    plan: DictConfig,
    target: Target,
    dataset: Dataset,
    opened: Opened,
    outputs: np.ndarray,
    reference: np.ndarray,
    drawn: Calibration | None,
) -> dict[str, Any]:
    """The part of the record that the measurements on the test split give."""
    labels = dataset.test.labels[dataset.test.rows]
    for name, values in ((plan.what, reference), ("the exported file", outputs)):
        if not np.isfinite(values).all():
            raise RunFailed(f"{name}: its outputs on {dataset.name} are not finite")
    logits = check.as_logits(outputs, opened.logits, plan.softmax)
    test = check.compare(logits, reference, labels, plan.softmax)
    keras = quality(reference, labels)
    images = len(drawn.rows) if drawn else None
    if drawn and images < plan.calibration:
        log.info("%s: all %s training images calibrate", dataset.name, f"{images:,}")
    record = target.record
    return {
        "schema_version": 1,
        **{key: plan[key] for key in ("format", "precision", "softmax")},
        "source": {
            "what": shown(target.run if record else target.file),
            "run_id": record.run_id if record else None,
            "network": target.name,
            "bytes": target.file.stat().st_size,
        },
        "inputs": [_tensor(opened.image)],
        "outputs": [_tensor(opened.logits)],
        "class_names": list(dataset.class_names),
        "dataset": {
            "name": dataset.name,
            **dataset.inputs.description(),
            "test": len(dataset.test),
            "fingerprint": dataset.fingerprint,
            "split_fingerprint": dataset.split_fingerprint,
        },
        "calibration": {
            "images": images,
            "seed": plan.seed,
            "rows_sha256": drawn.rows_sha256,
            "pixels_sha256": drawn.pixels_sha256,
            "changed_pixels": drawn.changed_pixels,
        }
        if drawn
        else None,
        "test": test,
        "keras": {"test": keras},
        "runtime": opened.runtime,
        "cores": cores(),
        **environment(),
        "warnings": check.doubts(plan.precision, test, keras["accuracy"], images),
    }


def _tensor(tensor: Tensor) -> dict[str, Any]:
    shape = [-1 if size is None else size for size in tensor.shape]
    known = {"name": tensor.name, "dtype": tensor.dtype, "shape": shape}
    return known | {"scale": tensor.scale, "zero_point": tensor.zero_point}


def _finish(made: Path, path: Path, record: ExportRecord) -> None:
    """Gives the file its name, with all of it on the disk, and then writes the record."""
    for file in [made] if made.is_file() else [p for p in made.rglob("*") if p.is_file()]:
        with open(file, "rb+") as opened:
            os.fsync(opened.fileno())
    record_path(path).unlink(missing_ok=True)  # of an earlier file
    if made.is_dir():
        discard(path)
    os.replace(made, path)
    sync_folder(path.parent)
    record.write(record_path(path))


# label, of a record's part: its text.
_ROWS: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("test accuracy, %", lambda one: f"{100 * one.test['accuracy']:.2f}"),
    ("test NLL, nats", lambda one: f"{one.test['nll']:.4f}"),
    ("ECE, 15 bins of equal width, %", lambda one: f"{100 * one.test['ece']:.2f}"),
    ("latency, one thread, ms", lambda one: f"{one.latency['one_thread']['median_ms']:.3g}"),
    ("latency, all threads, ms", lambda one: f"{one.latency['all_threads']['median_ms']:.3g}"),
    ("peak memory of the process, MB", lambda one: f"{one.peak_memory_bytes / 1e6:,.0f}"),
)


def _print(record: ExportRecord, path: Path) -> None:
    """The table of `kd export`."""
    title = f"{formats.FORMATS[record.format].title} {record.precision}"
    rows = [[label, text(record.keras), text(record)] for label, text in _ROWS]
    rows.append(["file, bytes", f"{record.source.bytes:,}", f"{record.bytes:,}"])
    rows.append(["agreement with Keras, %", "", f"{100 * record.test['agreement']:.2f}"])
    rows.append(["largest difference", "", f"{record.test['largest_difference']:.3g}"])
    where = f"{record.source.network} on {record.dataset['test']:,} test images"
    print_table(f"{where} of {record.dataset['name']}", ["", "Keras", title], rows)
    for label, tensors in (("takes", record.inputs), ("gives", record.outputs)):
        for one in tensors:
            print(f"{label:<12}{one.name} {one.dtype} {one.shape}{_meaning(one)}")
    if record.teacher is not None:
        one = record.teacher
        agrees = f"{100 * one.agreement:.2f} % of {one.images} test images as in Keras"
        print(f"teacher     {one.network} beside it, {one.bytes:,} bytes, {agrees}")
    print(f"ran with    {record.runtime}, {record.cores} cores, load {record.load_average:.1f}")
    print(f"file        {shown(path)}")
    print(f"written     {shown(record_path(path))}")


def _meaning(tensor: Any) -> str:
    if tensor.scale is None:
        return ""
    return f", a number q stands for {tensor.scale:.6g} x (q - {tensor.zero_point})"
