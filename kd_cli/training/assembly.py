"""Builds an engine that is ready to train from checked configurations.

The session keeps the last engine: the points of a sweep that differ in alpha, temperature, seeds
and the like put their values into its variables instead of tracing the step again.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from kd_cli.config.instantiate import build
from kd_cli.config.keys import VARIABLES
from kd_cli.config.plans import (
    given_by,
    has_rounds,
    is_mutual,
    is_taught,
    trains_teacher,
    view_shape,
)
from kd_cli.data.dataset import Dataset
from kd_cli.device import set_up
from kd_cli.errors import ConfigError, first_line
from kd_cli.runs.identity import digest, network_spec
from kd_cli.runs.model_file import checkpoint_file
from kd_cli.runs.session import Session
from kd_cli.training import class_weights
from kd_cli.training.schedules import smaller_from

if TYPE_CHECKING:
    from kd_cli.data.views import Views
    from kd_cli.distillation.teacher_features import Features
    from kd_cli.distillation.teacher_outputs import Outputs
    from kd_cli.training.step import Engine


@dataclass(frozen=True)
class Parts:
    """What a learner is made of, with the initial values of `init_seed`."""

    model: Any
    optimizer: Any
    objective: Any
    schedule: Any
    network: Any
    head: Any


def length(plan: DictConfig, dataset: Dataset) -> tuple[int, int]:
    """The steps of the whole training and of an epoch."""
    steps_per_epoch = -(-len(dataset.train) // plan.batch_size)
    return plan.steps or plan.epochs * steps_per_epoch, steps_per_epoch


def epochs(plan: DictConfig, dataset: Dataset) -> int:
    """How many epochs the training has; with `steps` the last one may end early."""
    total_steps, steps_per_epoch = length(plan, dataset)
    return -(-total_steps // steps_per_epoch)


def check_labels(plan: DictConfig, dataset: Dataset) -> None:
    """Refuses what can't be done with training images that have no labels, or all have one.

    Raises:
        ConfigError: Without labels: another command than distill, no given teacher, a loss that
            can't do without them, or early stopping without a validation split. With all of
            them: self-train.
    """
    if dataset.train.labelled:
        if has_rounds(plan) and dataset.unlabelled is None:
            more = ", or dataset.unlabelled_path=FOLDER" * ("unlabelled_path" in plan.dataset)
            raise ConfigError(
                f"{dataset.name}: all training images have labels, so self-train finds none to "
                f"label; type dataset.labelled_fraction=0.1 to keep the labels of a tenth{more}"
            )
        return
    bare = f"{dataset.name}: the training images have no labels"
    if not is_taught(plan):
        raise ConfigError(
            f"{bare}, which {plan.command} needs; they serve to distill with a given teacher: "
            "kd distill loss=function_matching teacher.checkpoint=FILE"
        )
    if plan.get("class_weights") is not None:
        raise ConfigError(f"class_weights={plan.class_weights}: {bare}; leave it out")
    if not given_by(plan):
        raise ConfigError(
            f"{bare}, so no teacher can be trained on them; give one: teacher.checkpoint=FILE"
        )
    if plan.early_stopping.patience is not None and dataset.validation is None:
        raise ConfigError(
            f"early_stopping.patience={plan.early_stopping.patience}: {bare}, so none can be held "
            "out to watch; put labelled ones into validation/<class>/, or leave it out"
        )
    set_up(plan.device)
    import tensorflow as tf

    from kd_cli.distillation.objective import of_plan

    blank = {"logits": tf.zeros([2, dataset.num_classes])}
    for part in of_plan(OmegaConf.to_container(plan.loss)).parts:
        why = "" if not part.needs.labels else "it is not defined without"
        if not why and not part.student_taps:
            try:  # with plain numbers, so that a loss may look at alpha
                terms = tf.nest.flatten(part.loss(None, blank, blank, **part.plain))
                finite = all(bool(tf.reduce_all(tf.math.is_finite(term))) for term in terms)
                why = "" if finite else "not finite without"
            except Exception as error:  # whatever a loss does with labels=None
                why = first_line(error)
        if why:
            raise ConfigError(
                f"{bare}, and the loss {part.target} needs them ({why}); use "
                "loss=function_matching, or alpha=0"
            )


def parts(
    plan: DictConfig,
    dataset: Dataset,
    role: str,
    teacher: Features | None = None,
) -> Parts:
    """Builds what the configuration names; the schedule first, because it needs no Keras.

    Args:
        plan, dataset, role: As in `engine_for`.
        teacher: What the losses get of its layers; None leaves the losses' own weights, and the
            student that a loss rebuilds, out.
    """
    steps = length(plan, dataset)
    schedule = build(plan.schedule, "schedule")(*steps)
    thaw = plan.freeze_epochs * steps[1]
    if thaw:
        schedule = smaller_from(schedule, thaw, plan.fine_tune_factor)
    set_up(plan.device)
    import keras

    from kd_cli.networks.keras_file import refuse_unsaveable
    from kd_cli.networks.wrap import build_network

    # The same layer names in every run, alone or not. (It forgets names, not models.)
    keras.utils.clear_session(free_memory=False)
    # Set just before the network is built, so that training a teacher first changes nothing.
    keras.utils.set_random_seed(plan.init_seed)
    node = plan[role]
    shape = view_shape(plan.augment.size, dataset.image_shape)
    model = build_network(node, shape, dataset.num_classes, plan.precision, role)
    refuse_unsaveable(model, role)
    if role == "student" and node.checkpoint is not None:
        _warm_start(model, node)
    if role == "teacher" and node.weights is not None:
        from kd_cli.networks.bit import load_published

        path = Path(node.weights).expanduser()
        load_published(model, path, "teacher.weights", new_head=True)
    objective, model, network, head = _objective(plan, dataset, model, teacher)
    return Parts(model, _optimizer(plan), objective, schedule, network, head)


def _optimizer(plan: DictConfig) -> Any:
    import keras

    # The rate of every step comes from the schedule. Keras refuses whole numbers here and there.
    chosen = OmegaConf.to_container(plan.optimizer)
    if isinstance(chosen.get("momentum"), int):
        chosen["momentum"] = float(chosen["momentum"])
    optimizer = build(chosen, "optimizer", learning_rate=float(plan.learning_rate))
    if isinstance(optimizer, keras.optimizers.Optimizer):
        from kd_cli.training.optimizers import refuse_idle

        refuse_idle(optimizer, plan.optimizer)
    if plan.precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def _objective(
    plan: DictConfig,
    dataset: Dataset,
    model: Any,
    teacher: Features | None,
) -> tuple[Any, Any, Any, Any]:
    """The losses, the network that is trained, the same with taps, and what is trained first."""
    from kd_cli.distillation.objective import of_plan
    from kd_cli.networks.wrap import rebuilt

    weights = class_weights.of_plan(plan, dataset)
    loss = OmegaConf.to_container(plan.loss)
    combine = plan.teacher.combine if is_taught(plan) else "mean"
    objective = of_plan(loss, length(plan, dataset)[1], weights, combine)
    if teacher is not None and objective.deploys:

        def change(network: Any) -> Any:
            return objective.deploy(network, teacher.model)

        model = rebuilt(model, change, plan.student.input, plan.precision, "student")
    network, shapes, head = model, {}, None
    if objective.student_taps or plan.freeze_epochs:
        from kd_cli.networks.taps import Graph
        from kd_cli.training.head_first import HeadFirst

        graph = Graph(model, "teacher" if trains_teacher(plan) else "student")
        if plan.freeze_epochs:
            head = HeadFirst(graph, _optimizer(plan), *_thaw(plan, dataset))
        still = head.still if head else -1
        network = graph.with_taps(objective.student_taps, still=still)
        shapes = {tap: graph.find(tap).shape for tap in objective.student_taps}
    if teacher is not None:
        split = dataset.train
        labels = split.labels[split.rows]
        objective.build(shapes, teacher.shapes, dataset.num_classes, labels)
    return objective, model, network, head


def _thaw(plan: DictConfig, dataset: Dataset) -> tuple[int, str]:
    """The step from which all weights are trained, and what to say of it."""
    first, every = plan.freeze_epochs, epochs(plan, dataset)
    rest = f"from epoch {first + 1} on all of them, at {plan.fine_tune_factor:g} times the rate"
    if first >= every:
        rest = f"that is the whole training, which has {every} epochs"
    return first * length(plan, dataset)[1], rest


def augmentation(plan: DictConfig, dataset: Dataset, session: Session) -> Views | None:
    """The views that a plan asks for, or None where the images stay as they are stored."""
    node = plan.augment
    if not node.train and not node.evaluate:
        return None
    device = set_up(plan.device)
    from kd_cli.data.views import Views

    key = digest([_views_spec(plan), *_data(dataset), device], 32)
    view, seed = plan.get("view", "consistent"), plan.get("augment_seed", 0)
    # XLA on a CPU fuses what would be many passes over small tensors; not tried on GPUs.
    views = session.views.obtain(key, lambda: Views(node, view, dataset, device == "cpu", seed))
    views.seed = seed
    return views


def _data(dataset: Dataset) -> list[str]:
    return [dataset.fingerprint, dataset.split_fingerprint, dataset.unlabelled_fingerprint]


def _views_spec(plan: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(plan.augment)
    kept = {key: plain[key] for key in ("train", "evaluate", "size")}
    return {**kept, "view": plan.get("view")}


def engine_for(
    plans: list[DictConfig],
    dataset: Dataset,
    role: str,
    outputs: Outputs | None,
    session: Session,
) -> Engine:
    """An engine whose learners stand at the beginning of the trainings that `plans` describe.

    Args:
        plans: They share data, batches and teacher.
        dataset: Its training split is trained on.
        role: `teacher` or `student`.
        outputs: The teacher's logits, cached or live; None without a teacher.
        session: Holds the last engine, which is used again if it fits.
    """
    set_up(plans[0].device)
    import keras

    from kd_cli.training.step import Engine, Learner

    first = plans[0]
    features = outputs.features if outputs else None
    key = digest(
        {
            "learners": [[_graph(plan, role), length(plan, dataset)] for plan in plans],
            "batch_size": first.batch_size,
            "data": [*_data(dataset), dataset.train.sha256],
            "teacher": outputs.key if outputs else "",
            "views": _views_spec(first),
            "memory": first.memory_gib,
        },
        32,
    )
    engine = session.engine.get(key)
    if engine is not None:
        for learner, plan in zip(engine.learners, plans, strict=True):
            new = parts(plan, dataset, role, features)
            learner.begin_again(new.model, new.optimizer, new.objective, new.head)
            del new
            gc.collect()  # a Keras model is a cycle: one at a time, not one per point
        engine.data_seed = first.data_seed
        if engine.views is not None:
            engine.views.seed = first.augment_seed
        return engine
    session.engine.drop()
    keras.utils.clear_session()
    gc.collect()
    learners = []
    for plan in plans:
        new = parts(plan, dataset, role, features)
        learners.append(
            Learner(
                new.model,
                new.optimizer,
                new.objective,
                new.schedule,
                dataset.train.labelled > 0,
                new.network,
                new.head,
            )
        )
    engine = Engine(
        learners,
        dataset.train,
        first.batch_size,
        first.data_seed,
        stored=outputs.stored if outputs else None,
        shapes=outputs.shapes if outputs else {},
        teacher=outputs.live if outputs else None,
        views=augmentation(first, dataset, session),
        repeats=outputs.repeats if outputs else None,
        budget=first.memory_gib * 2**30,
        mutual=is_mutual(first),
    )
    return session.engine.keep(key, engine)


def _graph(plan: DictConfig, role: str) -> dict[str, Any]:
    """What the traced step of a learner depends on, as well as data and teacher."""
    plain = OmegaConf.to_container(plan)
    # Their values are variables; a loss that leaves one out traces its default.
    loss = {
        name: {k: "variable" if k in (*VARIABLES, "weight") else v for k, v in node.items()}
        for name, node in plain["loss"].items()
    }
    return {
        "network": network_spec(plan[role]),
        "precision": plan.precision,
        "optimizer": plain["optimizer"],
        "schedule": plain["schedule"],
        "head first": [plan.freeze_epochs, plan.fine_tune_factor],
        "loss": loss,
        "class_weights": plan.get("class_weights") is not None,
        "combine": plan.teacher.combine if is_taught(plan) else "",
    }


def _warm_start(model: Any, node: DictConfig) -> None:
    """Copies the weights of a `.keras` file with the same network into `model`."""
    from kd_cli.networks.keras_file import OwnCodeError, load_keras, load_weights
    from kd_cli.networks.wrap import set_weights

    path = checkpoint_file(node.checkpoint)
    try:
        source = load_keras(path, "student.checkpoint")
    except OwnCodeError:  # the network is here, and needs no other
        load_weights(model, path, f"student.checkpoint={path}", node.network["_target_"])
        return
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
    set_weights(model, theirs)
