"""`kd evaluate WHAT`: quality, fidelity and cost of a finished run or of any `.keras` file.

A run is measured on its own data, unless a dataset is typed; a file on the dataset that is typed.
Nothing of a run is changed: `evaluation.json` is added to it, or written below outputs/evaluate/.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from kd_cli.commands.evaluate_network import network_of, teacher_of_run
from kd_cli.commands.evaluate_target import (
    Target,
    check_same,
    find,
    plan_of,
    warn_of_classes,
    with_data,
)
from kd_cli.commands.table import Request
from kd_cli.config.inputs import inputs_of
from kd_cli.config.row import are_names, is_name
from kd_cli.data.dataset import Dataset, load_dataset
from kd_cli.device import set_up
from kd_cli.errors import ConfigError, RunFailed, first_line
from kd_cli.export.formats import FORMATS
from kd_cli.files import bytes_of, remove_leftovers, write_json, write_npz
from kd_cli.report.columns import COLUMNS, PERCENT, In
from kd_cli.runs import finished, identity, quality, vocabulary
from kd_cli.runs.environment import cores, environment
from kd_cli.runs.record import Record
from kd_cli.runs.session import Session
from kd_cli.terminal import messages, print_table, shown
from kd_cli.training import assembly

if TYPE_CHECKING:
    from kd_cli.data.views import Views
    from kd_cli.networks.predict import Prepare


log = logging.getLogger("kd")
SCHEMA_VERSION = 1
BATCHES = (1, 64)
Arrays = dict[str, np.ndarray]


def run(request: Request) -> int:
    """Measures the run or file that the command names.

    Raises:
        ConfigError: What can't be evaluated, or does not fit its data.
        RunFailed: The measurement broke.
    """
    overrides = request.overrides
    plan = plan_of(request, "measures")
    try:
        with messages():
            target = find(plan.what, exported=True)
            if target.format:
                FORMATS[target.format].require()
            plan, own = with_data(plan, overrides, target)
            out, result, arrays = _measure(
                plan, target, own, load_dataset(plan.dataset, plan.device)
            )
            remove_leftovers(out)
            if arrays is not None:
                write_npz(out / "predictions.npz", arrays)
            write_json(out / "evaluation.json", result)
    except (ConfigError, OSError):
        raise
    except Exception as error:
        hint = "HYDRA_FULL_ERROR=1 shows the traceback"
        raise RunFailed(f"{first_line(error)} ({hint})") from error
    _print(result, out, target.record)
    return 0


def _measure(
    plan: DictConfig, target: Target, own: bool, dataset: Dataset
) -> tuple[Path, dict[str, Any], Arrays | None]:
    """All that is measured: its folder, evaluation.json, and predictions.npz where it is new."""
    record = target.record
    if own:
        check_same(plan, record, dataset)
    vocabulary.refuse_other(target.file, dataset.tokenizer)
    if record:
        warn_of_classes(record, dataset)
    device = set_up(plan.device)
    from kd_cli.networks import cost
    from kd_cli.networks.predict import predict_rows

    session = Session()
    views = assembly.augmentation(plan, dataset, session)
    prepare = views.evaluate if views is not None else None
    network = network_of(plan, target, dataset)
    arrays: Arrays = {}
    for prefix, split in dataset.held_out:
        arrays[f"{prefix}labels"] = split.labels[split.rows]
        logits = predict_rows(network.predict, split, prepare)
        if not np.isfinite(logits).all():
            raise ConfigError(f"{plan.what}: its logits on {dataset.name} are not finite")
        arrays[f"{prefix}{target.role}_logits"] = logits
    warnings = network.warnings
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "what": shown(target.run if record else target.file),
        "command": record.command if record else None,
        "run_id": record.run_id if record else None,
        "network": target.name,
        "weights_sha256": network.sha256,
        "own_data": own,
        "dataset": {
            "name": dataset.name,
            **dataset.inputs.description(),
            "class_names": list(dataset.class_names),
            "validation": len(dataset.validation) if dataset.validation else 0,
            "test": len(dataset.test),
            "train_per_class": dataset.per_class(dataset.train),
            "test_per_class": dataset.per_class(dataset.test),
            "fingerprint": dataset.fingerprint,
            "split_fingerprint": dataset.split_fingerprint,
        },
        "augment": {key: OmegaConf.to_container(plan.augment)[key] for key in ("evaluate", "size")},
        "quality": quality.of_splits(arrays, target.role),
    }
    accuracy = result["quality"]["test"]["accuracy"]
    if own and accuracy != record.test.accuracy:
        warnings.append(
            f"test accuracy is {accuracy:.6f} now, the run recorded "
            f"{record.test.accuracy:.6f}; another device or version rounds differently"
        )
    if record and dataset.validation and _trained_on(record, dataset):
        warnings.append(
            "this split is not the run's: the run may have been trained on some of its validation "
            f"{dataset.inputs.many}, so the validation scores and the fitted temperature may be "
            "too good"
        )
    if record and record.command == "distill":
        why = _ask_teacher(plan, target, own, dataset, arrays, views, session)
        if why:
            warnings.append(f"no agreement with the teacher: {why}")
        else:
            result["fidelity"] = quality.fidelity_of_splits(arrays, record.temperature)
            known = {key: record.teacher[key] for key in ("path", "name", "weights_sha256")}
            result["teacher"] = known | {"quality": quality.of_splits(arrays, "teacher")}
    # Of the last minute, before the measurement: other work on the machine makes it slower.
    load = os.getloadavg()[0]
    result |= {
        "parameters": network.parameters,
        "flops": network.flops,
        "flops_convention": cost.CONVENTION,
        "file_bytes": bytes_of(target.file),
        "latency": {
            str(batch): cost.timed(network.run(_batch(dataset, batch, prepare)))
            for batch in network.batches or BATCHES
        },
        "device": device,
        "cores": cores(),
        "load_average": load,
        **environment(),
        "warnings": warnings,
    }
    for warning in warnings:
        log.warning("%s", warning)
    if own:
        return target.run, result, None
    return _folder(result, Path(plan.outputs)), result, arrays


def _trained_on(record: Record, dataset: Dataset) -> bool:
    """Whether these are the images of a run, split in another way."""
    if record.command == "self-train":  # its split counts the pseudo-labels
        return False
    same = record.dataset.fingerprint == dataset.fingerprint
    return same and record.dataset.split_fingerprint != dataset.split_fingerprint


def _batch(dataset: Dataset, size: int, prepare: Prepare | None) -> np.ndarray:
    """Test images [size, H, W, C] or token ids [size, L], as the network gets them; repeated."""
    import tensorflow as tf

    from kd_cli.networks.inputs import as_given

    rows = np.resize(dataset.test.rows, size)
    images = tf.constant(dataset.test.images[rows])
    if prepare is not None:
        images = prepare(images, tf.constant(rows, tf.int64))
    return as_given(images).numpy()


def _ask_teacher(
    plan: DictConfig,
    target: Target,
    own: bool,
    dataset: Dataset,
    arrays: Arrays,
    views: Views | None,
    session: Session,
) -> str:
    """Adds the teacher's logits to `arrays`: those that the run kept, or else asked now.

    Returns:
        Why there are none; empty when they were added.
    """
    if own:
        kept = finished.predictions(finished.FinishedRun(target.record, target.run))
        names = [f"{prefix}labels" for prefix, _ in dataset.held_out]
        if all(name in kept and np.array_equal(kept[name], arrays[name]) for name in names):
            found = {name: kept[name] for name in kept if name.endswith("teacher_logits")}
            if "teacher_logits" in found:
                arrays |= found
                return ""
    from kd_cli.distillation import prepare

    try:
        teacher, asked = teacher_of_run(plan, target.record, dataset, session)
    except ConfigError as error:
        return str(error)
    arrays |= prepare.ask(teacher, asked, dataset, views, session).arrays
    return ""


def _folder(result: dict[str, Any], outputs: Path) -> Path:
    """Where the evaluation on other data is written; beside that on data of the same name."""
    data_of = ("dataset", "augment")
    # A file of another program has any name, and a record of one names anything.
    name, dataset = result["network"], result["dataset"]["name"]
    name = name if is_name(name) else identity.digest(name)
    dataset = dataset if are_names(dataset) else identity.digest(dataset)
    folder = outputs / "evaluate" / dataset / f"{name}-{result['weights_sha256'][:8]}"
    kept = finished.evaluation(folder)
    if kept is None or all(kept.get(key) == result[key] for key in data_of):
        return folder
    return folder.with_name(f"{folder.name}-{identity.digest([result[key] for key in data_of], 8)}")


def _print(result: dict[str, Any], out: Path, record: Record | None) -> None:
    """The table of `kd evaluate`."""
    splits, rows = list(result["quality"]), []
    for column in COLUMNS:
        values = [column.on(split, result) for split in splits]
        if In.EVALUATE in column.tables and values != [None] * len(splits):
            rows.append([column.label, *map(column.cell, values)])
    worst = [min((v, n) for v, n in _per_class(result, split)) for split in splits]
    rows.append(["worst class, %", *(f"{name}: {PERCENT.text(value)}" for value, name in worst)])
    sizes = [f"{split} ({result['dataset'][split]:,})" for split in splits]
    print_table(f"{result['network']} on {result['dataset']['name']}", ["", *sizes], rows)
    operations = result["flops"]
    print(f"network            {result['what']}")
    if record and record.dataset.labelled < record.dataset.train:
        many = inputs_of(record.dataset).many
        sizes = f"{record.dataset.train:,} {many}, {record.dataset.labelled:,} of them with a label"
        print(f"trained on         {sizes}")
    each = f"FLOPs per {inputs_of(result['dataset']).one}"
    for label, count in (("parameters", result["parameters"]), (each, operations)):
        print(f"{label:<19}{'not counted' if count is None else f'{count:,}'}")
    if record and record.deployed:
        print(f"made of            {record.deployed.words()}")
    print(f"file               {result['file_bytes']:,} bytes")
    for batch, taken in result["latency"].items():
        print(
            f"latency, batch {batch:<3} {taken['median_ms']:.3g} ms median, {taken['p95_ms']:.3g} "
            f"ms 95th percentile of {taken['runs']} runs"
        )
    cores, load = result["cores"], result["load_average"]
    print(f"device             {result['device']}, {cores} cores, load average {load:.1f}")
    print(f"written            {shown(out / 'evaluation.json')}")


def _per_class(result: dict[str, Any], split: str) -> list[tuple[float, str]]:
    names = result["dataset"]["class_names"]
    found = zip(result["quality"][split]["per_class"], names, strict=True)
    return [(value, name) for value, name in found if value is not None]
