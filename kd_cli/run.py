"""The three commands: train_teacher, train_student, distill. Each reads from data to result."""

from __future__ import annotations

import logging
import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from kd_cli import data, identity, metrics
from kd_cli.checkpoint import State, save_model, write_json, write_npz
from kd_cli.config import build, check, compose, override_key
from kd_cli.data import Dataset
from kd_cli.device import request, set_up
from kd_cli.errors import ConfigError
from kd_cli.ownership import check_before_start, inputs, lock, refuse_other_inputs
from kd_cli.progress import shown
from kd_cli.summary import print_result

if TYPE_CHECKING:
    from kd_cli.engine import Learner

log = logging.getLogger("kd")


def execute(plan: DictConfig, out: Path, typed: list[str], table: bool = True) -> dict[str, Any]:
    """Runs a checked configuration in `out`, or answers with its finished result.

    Args:
        plan: From `config.check`.
        out: The run's directory, which exists.
        typed: The overrides that the user typed, for the teacher that may have to be trained.
        table: Whether to print the result (a sweep prints one table at its end).

    Returns:
        The content of `metrics.json`.
    """
    started = time.monotonic()
    request(plan.device)
    dataset = data.load(plan.dataset)
    with lock(out):
        record = _run(plan, dataset, out, typed, started)
    if table:
        print_result(record, plan, out, typed)
    return record


def _run(
    plan: DictConfig, dataset: Dataset, out: Path, typed: list[str], started: float
) -> dict[str, Any]:
    record = metrics.read(out)
    if record is not None:
        refuse_other_inputs(record["inputs"], inputs(plan, dataset), out)
        log.info("%s is finished; rerun=true makes a new run beside it", shown(out))
        return record
    if plan.command == "distill":
        return distill(plan, dataset, out, typed, started)
    train = train_student if plan.command == "train-student" else train_teacher
    return train(plan, dataset, out, started)


def train_teacher(plan: DictConfig, dataset: Dataset, out: Path, started: float) -> dict[str, Any]:
    """Trains the teacher with cross-entropy and keeps it in `out`."""
    return _train(plan, dataset, out, started, role="teacher")


def train_student(plan: DictConfig, dataset: Dataset, out: Path, started: float) -> dict[str, Any]:
    """Trains the student with cross-entropy, without a teacher: the baseline."""
    return _train(plan, dataset, out, started, role="student")


def distill(
    plan: DictConfig, dataset: Dataset, out: Path, typed: list[str], started: float
) -> dict[str, Any]:
    """Distils the teacher into the student; trains the teacher first where it is missing."""
    device = set_up(plan.device)
    from kd_cli import teacher as teachers

    teacher = teachers.find(plan, dataset)
    if teacher is None:
        _build_parts(plan, dataset, "student")  # its mistakes, before the teacher's long training
        begun = time.monotonic()
        _train_missing_teacher(plan, dataset, typed)
        started += time.monotonic() - begun  # the teacher's record has its own time
        teacher = teachers.find(plan, dataset)
    scores = teachers.evaluate(teacher, dataset)
    how = f", {teacher.training}" if teacher.training else ""
    log.info(
        "teacher: %s%s, test %.4f (%s, on %s)",
        teacher.name,
        how,
        scores["accuracy"],
        shown(teacher.path),
        device,
    )
    logits, seconds = teachers.logits(teacher, dataset, "train")
    record = {
        "path": shown(teacher.path),
        "name": teacher.name,
        "weights_sha256": teacher.weights_sha256,
        "training": teacher.training or "unknown",
        "test_accuracy": scores["accuracy"],
        "test_nll": scores["nll"],
        "parameters": teacher.model.count_params(),
    }
    test_logits, _ = teachers.logits(teacher, dataset, "test")
    return _train(
        plan,
        dataset,
        out,
        started,
        role="student",
        teacher={"record": record, "train": logits, "test": test_logits, "seconds": seconds},
    )


def _train(
    plan: DictConfig,
    dataset: Dataset,
    out: Path,
    started: float,
    role: str,
    teacher: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Builds the network, trains it, and leaves everything that a run leaves in `out`."""
    owner = {"run_id": identity.run_id(plan), "inputs": inputs(plan, dataset)}
    state = State(out / "state").owner()
    if state is not None:
        refuse_other_inputs(state["inputs"], owner["inputs"], out)
    learner, total_steps, steps_per_epoch = _build_parts(plan, dataset, role)
    device = set_up(plan.device)
    from kd_cli.engine import Engine, cached_teacher, predict_rows, predictor
    from kd_cli.losses import formula
    from kd_cli.teacher import weights_hash
    from kd_cli.tracking import tracker
    from kd_cli.trainer import fit

    engine = Engine(
        [learner],
        dataset.train,
        plan.batch_size,
        plan.data_seed,
        cached_teacher(teacher["train"], dataset.train) if teacher else None,
    )
    ended, best_weights = fit(
        engine,
        dataset.validation,
        out=out,
        owner=owner,
        label=role,
        epochs=-(-total_steps // steps_per_epoch),
        total_steps=total_steps,
        patience=plan.early_stopping.patience,
        monitor=plan.early_stopping.monitor,
        tracker=tracker(plan.get("tracker"), out),
    )

    # The test split is read here, once, for the last and for the chosen weights.
    labels = dataset.test.labels[dataset.test.rows]
    model = learner.model
    predict = predictor(model)
    test_last = metrics.score(predict_rows(predict, dataset.test), labels)
    model.set_weights(best_weights)
    test_logits = predict_rows(predict, dataset.test)
    save_model(out / "model.keras", model)
    arrays = {"labels": labels, f"{role}_logits": test_logits}
    if teacher:
        arrays["teacher_logits"] = teacher["test"]
    write_npz(out / "predictions.npz", arrays)

    record = {
        "schema_version": metrics.SCHEMA_VERSION,
        "command": plan.command,
        "run_id": owner["run_id"],
        "config": identity.run_spec(plan),
        "inputs": owner["inputs"],
        "seed": plan.seed,
        **metrics.environment(),
        "device": device,
        "precision": plan.precision,
        "dataset": {
            "name": dataset.name,
            "image_shape": list(dataset.image_shape),
            "class_names": list(dataset.class_names),
            "train": len(dataset.train),
            "validation": len(dataset.validation) if dataset.validation else 0,
            "test": len(dataset.test),
            "fingerprint": dataset.fingerprint,
            "split_fingerprint": dataset.split_fingerprint,
        },
        "input": f"pixels 0..255, [batch, {', '.join(map(str, dataset.image_shape))}]",
        "network": plan[role].name,
        "parameters": model.count_params(),
        "loss": formula(plan.loss["_target_"], learner.hyper),
        "alpha": plan.get("alpha"),
        "temperature": plan.get("temperature"),
        "epochs_done": ended.epoch,
        "steps_done": ended.step,
        "stopped": ended.stopped,
        "warnings": list(ended.warnings.values()),
        "test": metrics.score(test_logits, labels),
        "test_last": test_last,
        "weights_sha256": weights_hash(model),
        "timings": {
            "total_seconds": max(time.monotonic() - started, ended.seconds),
            "train_seconds": ended.train_seconds,
            "seconds_per_epoch": ended.train_seconds / max(ended.epoch, 1),
            "examples_per_second": ended.examples / max(ended.train_seconds, 1e-9),
            "teacher_forward_seconds": teacher["seconds"] if teacher else 0.0,
        },
    }
    if dataset.validation is not None:
        record["validation"] = {
            "best": {"epoch": ended.best_epoch, **ended.best},
            "last": {"epoch": ended.epoch, **ended.last},
        }
    if teacher:
        record["teacher"] = teacher["record"]
    write_json(out / "metrics.json", record)
    _point_latest(out)
    return record


def _build_parts(plan: DictConfig, dataset: Dataset, role: str) -> tuple[Learner, int, int]:
    """The learner, the steps of its training and of an epoch; the schedule first, without Keras."""
    steps_per_epoch = -(-len(dataset.train) // plan.batch_size)
    total_steps = plan.steps or plan.epochs * steps_per_epoch
    schedule = build(plan.schedule, "schedule")(total_steps, steps_per_epoch)
    set_up(plan.device)
    import keras

    from kd_cli.engine import Learner
    from kd_cli.models import build_network

    # Set just before the network is built, so that training a teacher first changes nothing.
    keras.utils.clear_session()
    keras.utils.set_random_seed(plan.init_seed)
    node = plan[role]
    model = build_network(node, dataset.image_shape, dataset.num_classes, plan.precision, role)
    if role == "student" and node.checkpoint is not None:
        _warm_start(model, node.checkpoint)
    # The rate of every step comes from the schedule; Keras refuses a whole number here.
    optimizer = build(plan.optimizer, "optimizer", learning_rate=float(plan.learning_rate))
    if plan.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    loss = build(plan.loss, "loss")
    learner = Learner(model, optimizer, loss.func, loss.keywords, schedule)
    return learner, total_steps, steps_per_epoch


def _train_missing_teacher(plan: DictConfig, dataset: Dataset, typed: list[str]) -> None:
    """Trains the teacher as `kd train-teacher` would with the same data, teacher and recipe."""
    kept = [override for override in typed if _belongs_to_teacher(override)]
    out = Path(plan.teacher_dir)
    teacher_plan = check(compose("train-teacher", kept), kept)
    check_before_start(teacher_plan, out)
    _build_parts(teacher_plan, dataset, "teacher")  # its mistakes, before there is a directory
    with lock(out, wait=True):
        if metrics.read(out) is not None:
            return  # another process has trained it meanwhile
        log.info(
            "no teacher in %s yet: training it first (%s)",
            shown(out),
            shlex.join(["kd", "train-teacher", *kept]),
        )
        (out / ".hydra").mkdir(exist_ok=True)
        OmegaConf.save(teacher_plan, out / ".hydra" / "config.yaml")
        OmegaConf.save(OmegaConf.create(kept), out / ".hydra" / "overrides.yaml")
        handler = logging.FileHandler(out / "kd.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        try:
            train_teacher(teacher_plan, dataset, out, time.monotonic())
        finally:
            log.removeHandler(handler)
            handler.close()


_TEACHER_KEYS = (
    "dataset",
    "teacher",
    "experiment",
    "teacher_dir",
    "data_dir",
    "cache_dir",
    "device",
)


def _belongs_to_teacher(override: str) -> bool:
    key = override_key(override)
    if key in ("teacher.checkpoint", "teacher.train_if_missing"):
        return False
    return key.split(".")[0] in _TEACHER_KEYS or key.startswith("recipe.teacher")


def _warm_start(model: Any, checkpoint: str) -> None:
    """Copies the weights of a `.keras` file with the same network into `model`."""
    from kd_cli.teacher import load_keras

    path = Path(checkpoint).expanduser()
    source = load_keras(path, "student.checkpoint")
    theirs, ours = source.get_weights(), model.get_weights()
    if [w.shape for w in theirs] != [w.shape for w in ours]:
        first = next(
            (
                f"{a.shape} against {b.shape}"
                for a, b in zip(theirs, ours, strict=False)
                if a.shape != b.shape
            ),
            f"{len(theirs)} weights against {len(ours)}",
        )
        raise ConfigError(
            f"student.checkpoint={path} holds another network than student.network: {first}"
        )
    model.set_weights(theirs)


def _point_latest(out: Path) -> None:
    """`outputs/latest` is a link to the last finished run; a convenience that may fail."""
    link = identity.OUTPUTS / "latest"
    temporary = link.with_name(f".tmp-{os.getpid()}-latest")
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(out, link.parent))
        os.replace(temporary, link)
    except OSError as error:
        log.warning("%s does not point to this run: %s", link, error.strerror)
