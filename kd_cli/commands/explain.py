"""`kd explain`: shows what a distill run would do, how long it takes, and each term's gradient.

It uses the run's own engine, teacher and first batch, so the run would give the same numbers. It
keeps nothing that it trains and makes no run directory. It only fills caches that any run fills,
and those not with the teacher's outputs on training images, which may take hours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from kd_cli.commands import estimate
from kd_cli.commands.explain_losses import loss_line, print_balance, print_taps, remarks
from kd_cli.commands.job import is_sweep
from kd_cli.commands.table import Request
from kd_cli.config.compose import compose
from kd_cli.config.overrides import teacher_overrides
from kd_cli.config.plans import given_by, member_plans, teacher_augment_follows, teacher_plan
from kd_cli.config.quoting import command_line
from kd_cli.data.dataset import Dataset, load_dataset
from kd_cli.device import set_up
from kd_cli.errors import ConfigError, RunFailed, first_line
from kd_cli.runs.asked import Runs
from kd_cli.runs.identity import teacher_dir
from kd_cli.runs.quality import certainty
from kd_cli.runs.record import Deployed, Record
from kd_cli.runs.resolvers import register_resolvers
from kd_cli.runs.session import Session
from kd_cli.terminal import messages, shown
from kd_cli.training import assembly
from kd_cli.training.balance import balance
from kd_cli.training.schedules import in_steps

if TYPE_CHECKING:
    from kd_cli.data.views import Views
    from kd_cli.distillation.prepare import Prepared
    from kd_cli.distillation.teacher_outputs import Outputs
    from kd_cli.training.step import Engine


def run(request: Request) -> int:
    """Explains the run that the overrides and flags of distill describe."""
    if is_sweep(request.flags):
        raise ConfigError("explain handles one run; remove --multirun and give each key one value")
    runs = Runs()
    register_resolvers(runs)
    one = runs.single(compose("distill", request.overrides, request.config_dir))
    try:
        explain(one.plan, request.overrides, request.config_dir)
    except (ConfigError, OSError):
        raise
    except Exception as error:
        hint = "HYDRA_FULL_ERROR=1 shows the traceback"
        raise RunFailed(f"{first_line(error)} ({hint})") from error
    return 0


def explain(plan: DictConfig, typed: list[str], config_dir: str | None = None) -> None:
    """Prints what `kd distill` would do with a checked configuration, and how long it would take.

    Args:
        plan: Of distill, from `config.check`.
        typed: Its overrides, for the command that trains a missing teacher.
        config_dir: The user's `--config-dir`, for that command too.

    Raises:
        ConfigError: Anything that a run would refuse.
    """
    untrained = not given_by(plan) and any(
        Record.read(teacher_dir(one)) is None for one in member_plans(plan)
    )
    kept = teacher_overrides(typed, teacher_augment_follows(plan))
    train_it = command_line("train-teacher", kept, config_dir)
    if untrained and not plan.teacher.train_if_missing:
        raise ConfigError(
            f"no finished teacher in {shown(teacher_dir(plan))}, and teacher.train_if_missing="
            f"false; train it with: {train_it}"
        )
    session = Session()
    with messages():
        dataset = load_dataset(plan.dataset, plan.device)
        assembly.check_labels(plan, dataset)
        set_up(plan.device)
        from kd_cli.distillation import loss_checks, teacher_outputs, teacher_tables
        from kd_cli.distillation.prepare import prepare
        from kd_cli.distillation.teacher_features import Features, wanted_by
        from kd_cli.networks.doubts import doubts

        views = assembly.augmentation(plan, dataset, session)
        loss_checks.refuse(plan, dataset, views)
        prepared = prepare(plan, dataset, views, session)
        teacher = prepared.teacher if prepared else None
        first, network = (None, teacher.model) if teacher else _missing(plan, dataset)
        ask = Features(network, wanted_by([plan]))
        epochs = assembly.epochs(plan, dataset)
        planned = teacher_outputs.planned(teacher, ask, plan, dataset, views, epochs, session)
        outputs, stored = planned.outputs, planned.views > planned.missing == 0
        engine = assembly.engine_for([plan], dataset, "student", outputs, session)
        (learner,) = engine.learners
        warnings = doubts(learner.model, "student")
        if prepared:
            found = balance(learner, *engine.first_batch(None if stored else ask))
            tables = outputs.logits if stored else []
            asked = teacher_tables.on_training(teacher, tables, dataset, views)
            said = certainty(*asked, plan.get("temperature"))
            warnings = [*prepared.warnings(plan), *warnings]
        times = None
        if teacher or first:
            teachers = (first, len(member_plans(plan)))
            live = None if teacher and teacher.table else ask
            times = estimate.distilling(engine, plan, dataset, views, live, planned, *teachers)
    for head, text in [
        ("loss", loss_line(learner.objective)),
        ("schedule", schedule_line(plan, learner.schedule, *assembly.length(plan, dataset))),
        *([("first", learner.head.words())] if learner.head else []),
        ("optimizer", optimizer_line(plan)),
        *_data_path(plan, dataset, views, engine),
        ("student", f"{plan.student.name}, {_network(learner.model)}"),
        *_deployed(learner.objective.deployed),
        *_for_distilling(learner.objective.count_params()),
        *(_about_teacher(prepared) if prepared else _to_train(plan, train_it)),
        ("its logits", _answers_line(outputs, views)),
        *([("", _certainty_line(said, dataset.num_classes))] if prepared else []),
        *_times(times),
    ]:
        print(f"{head:<12}{text}")
    print_taps(learner.objective, learner.model, network)
    if prepared:
        print_balance(found, plan.init_seed)
        warnings = [
            *remarks(found, learner.objective.hyper),
            *(f"warning: {text}" for text in warnings),
        ]
    else:
        warnings = [f"warning: {text}" for text in warnings]
        warnings.append("The gradients need the trained teacher: train it, and explain again.")
    for text in warnings:
        print(text)


def _missing(plan: DictConfig, dataset: Dataset) -> tuple[estimate.Training | None, Any]:
    """The training of a teacher that kd trains first, and the network before it."""
    from kd_cli.networks.ensemble import together

    wanted = teacher_plan(plan)
    if wanted.dataset != plan.dataset:  # it may know more labels
        dataset = load_dataset(wanted.dataset, plan.device)
    engine = assembly.engine_for([wanted], dataset, "teacher", None, Session())
    model, count = engine.learners[0].model, len(member_plans(plan))
    model = model if count == 1 else together([model] * count)
    return estimate.training(engine, wanted, dataset), model


def _times(times: estimate.Distilling | None) -> list[tuple[str, str]]:
    first, *rest = times.lines() if times else ["no estimate: the loss is not finite"]
    return [("time", first), *(("", text) for text in rest)]


def schedule_line(plan: DictConfig, schedule: Any, total: int, steps_per_epoch: int) -> str:
    """The name, and the learning rates at the first step, after the warm-up, half-way, at the end.

    Args:
        plan: Names the schedule.
        schedule: step -> learning rate; the first step is 0.
        total: Steps of the training.
        steps_per_epoch: Of which so many are an epoch.
    """
    node = plan.schedule
    warmup = in_steps(node.get("warmup_steps"), node.get("warmup_epochs"), steps_per_epoch)
    places = {"first step": 0}
    if warmup:
        places[f"end of the warm-up (step {warmup:,})"] = warmup
    places[f"middle (step {total // 2:,})"] = total // 2
    places[f"last step ({total - 1:,})"] = total - 1
    rates = [f"{float(schedule(step)):.4g} at the {name}" for name, step in places.items()]
    return f"{_short(node['_target_'])}: {', '.join(rates)}"


def optimizer_line(plan: DictConfig) -> str:
    """Name and options of the optimizer; its rate is the schedule's."""
    return f"{_call(OmegaConf.to_container(plan.optimizer))}, {plan.precision}"


def _data_path(
    plan: DictConfig, dataset: Dataset, views: Views | None, engine: Engine
) -> list[tuple[str, str]]:
    """From the stored images to what the networks get, a line each."""
    from kd_cli.data.batches import InMemory

    total, per_epoch = assembly.length(plan, dataset)
    held = f"{len(dataset.validation):,} validation" if dataset.validation else "no validation"
    labelled = dataset.train.labelled
    bare = f" ({labelled:,} with a label)" if labelled < len(dataset.train) else ""
    images = dataset.train.images
    where = "in memory" if isinstance(engine.source, InMemory) else "streamed from the disk"
    lines = [
        (
            "data",
            f"{dataset.name}: {len(dataset.train):,} training{bare}, {held}, "
            f"{len(dataset.test):,} test images of {dataset.num_classes} classes",
        ),
        (
            "steps",
            f"{total:,} of {plan.batch_size} images, {per_epoch:,} an epoch, "
            f"{math.ceil(total / per_epoch):,} epochs; order by data_seed {plan.data_seed}",
        ),
        ("pixels", f"{list(dataset.image_shape)} {images.dtype}, 0..255, {where}"),
    ]
    if views is None:
        return [*lines, ("augment", "none: the same pixels in every epoch, for both networks")]
    train = ", ".join(_call(node) for node in OmegaConf.to_container(plan.augment.train))
    evaluation = ", ".join(_call(node) for node in OmegaConf.to_container(plan.augment.evaluate))
    seen = {
        "consistent": "teacher and student get the same tensor",
        "independent": "the teacher gets other crops and flips than the student",
        "fixed_teacher": "the teacher gets the image as in evaluation",
    }
    return [
        *lines,
        ("augment", f"{train or 'none'}; in evaluation {evaluation or 'none'}"),
        ("view", f"{plan.view}: {seen[plan.view]}, {list(views.shape)}"),
    ]


def _deployed(parts: Mapping[str, int] | None) -> list[tuple[str, str]]:
    return [("", f"made of {Deployed(**parts).words()}")] if parts else []


def _for_distilling(parameters: int) -> list[tuple[str, str]]:
    beside = f"{parameters:,} parameters are trained only for distilling, and not in model.keras"
    return [("", beside)] if parameters else []


def _to_train(plan: DictConfig, train_it: str) -> list[tuple[str, str]]:
    return [
        ("teacher", f"{plan.teacher.name}, not trained yet; kd distill trains it first, with:"),
        ("", train_it),
    ]


def _about_teacher(prepared: Prepared) -> list[tuple[str, str]]:
    teacher = prepared.teacher
    part = "validation" if "validation" in prepared.quality else "test"
    training = f", {teacher.training}" if teacher.training else ""
    accuracy = f"{part} {prepared.quality[part]['accuracy']:.4f}"
    line = f"{teacher.name}{training}, {accuracy} ({shown(teacher.path)})"
    known = [] if teacher.parameters is None else [("", _network(teacher.model))]
    return [("teacher", line), *known]


def _certainty_line(said: Mapping[str, Any], classes: int) -> str:
    """How much the teacher says beyond the labels."""
    right = "" if said["accuracy"] is None else f"right on {100 * said['accuracy']:.2f} %, "
    at = said["entropy_at_temperature"]
    more = "" if at is None else f", {at:.3f} at the temperature of the loss"
    return (
        f"on {said['images']:,} training images {right}mean entropy {said['entropy']:.3f} "
        f"nats{more} (at most {math.log(classes):.3f})"
    )


def _answers_line(outputs: Outputs, views: Views | None) -> str:
    """Whether the teacher's logits are stored or computed at every step, and why."""
    if outputs.live is not None:
        return outputs.how
    if outputs.repeats is not None:
        return f"{outputs.how}, which repeat every {outputs.repeats} epochs"
    same = "the pixels are" if views is None else "the teacher's pixels are"
    return f"{outputs.how}: {same} the same in every epoch"


def _network(model: Any) -> str:
    """Parameters and input adapter of a network that `networks.wrap.with_adapter` made."""
    from kd_cli.networks.wrap import ADAPTER

    found = {layer.name: layer for layer in model.layers}
    words = [f"{model.count_params():,} parameters"]
    if f"{ADAPTER}_size" in found:
        size = found[f"{ADAPTER}_size"]
        words.append(f"resized to {size.height}x{size.width}")
    if ADAPTER in found:
        pair = np.broadcast_arrays(found[ADAPTER].scale, found[ADAPTER].offset)
        each = [
            f"pixels * {scale:.6g} {'-' if offset < 0 else '+'} {abs(offset):g} (0..255 becomes "
            f"{offset:.4g}..{255 * scale + offset:.4g})"
            for scale, offset in zip(*map(np.atleast_1d, pair), strict=True)
        ]
        words.append("; ".join(each))
    return ", ".join(words)


def _short(target: str) -> str:
    return target.rsplit(".", 1)[-1]


def _call(node: Mapping[str, Any]) -> str:
    """`random_crop(size=128)` of a node."""
    apart = ("_target_", "_partial_", "name")
    options = [f"{k}={v}" for k, v in node.items() if k not in apart and v is not None]
    return _short(node["_target_"]) + (f"({', '.join(options)})" if options else "")
