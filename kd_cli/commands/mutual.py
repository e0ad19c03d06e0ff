"""`kd mutual`: trains students that teach each other, without a teacher (deep mutual learning).

All students see the same batches. Each learns from the labels and from the probabilities of the
others at the same step. Each leaves what a single run leaves, in a directory of its own. They are
trained, continued and given up together.

Source: Zhang et al. 2018, "Deep mutual learning".
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kd_cli.commands.execute import execute_together
from kd_cli.commands.job import Job, is_sweep, refuse_sweeping, start
from kd_cli.commands.result_table import scratch_of
from kd_cli.commands.several_students import overrides_of_each
from kd_cli.commands.table import COMMANDS, Request
from kd_cli.config.check import check
from kd_cli.config.compose import compose
from kd_cli.config.keys import PLACES
from kd_cli.config.overrides import is_typed, place_of, scratch_overrides
from kd_cli.config.plans import peer_name
from kd_cli.data.dataset import Dataset
from kd_cli.errors import ConfigError
from kd_cli.report.columns import In, columns
from kd_cli.runs.asked import Run, Runs, typed_for
from kd_cli.runs.finished import FinishedRun, read, test_accuracy
from kd_cli.runs.identity import digest, network_spec
from kd_cli.runs.resolvers import register_resolvers
from kd_cli.runs.session import Session
from kd_cli.runs.state import State
from kd_cli.terminal import print_table, shown
from kd_cli.training import assembly
from kd_cli.training.peers import PeerError
from kd_cli.training.train import Results, train

log = logging.getLogger("kd")
# What students that see the same batches to the same end can't have each for itself.
_SHARED = (
    *("dataset", "augment", "augment_seed", "batch_size", "accumulate", "data_seed"),
    *("epochs", "steps"),
    *("early_stopping", "checkpoint", "device", "memory_gib"),
)
_LOSS = {"_target_": "kd_cli.distillation.mutual", "_partial_": True}


class LeftAloneError(ConfigError):
    """A student that is to be trained while those that it learns from are not."""


@dataclass(frozen=True)
class Asked:
    """What was typed, by students.

    Attributes:
        students: The overrides of each.
        baseline: Whether each is trained alone too.
    """

    students: list[list[str]]
    baseline: bool


def run(request: Request) -> int:
    """Trains the students, and prints a table of them all.

    Raises:
        ConfigError: A mistake in what was typed; nothing has been written.
    """
    if is_sweep(request.flags):
        raise ConfigError("mutual trains one group; remove --multirun, and type seed=1 for another")
    refuse_sweeping(request.overrides, "leave it out")
    asked, session = asked_for(request.overrides), Session()
    register_resolvers(Runs(request.config_dir))
    found = runs_of(request, asked.students)
    if asked.baseline:
        for one, _ in found:
            _train_alone(request, one, session)
    runs = [one for one, _ in found]
    for one in runs:
        print(f"student {one.plan.peers.number} of {len(runs)}: {_place(one)}")
    job = Job(Runs(request.config_dir), session)

    def train_all(_: DictConfig) -> Any:
        results = execute_together(runs, session, alone=True)
        failed, error = _failure(runs, results)

        def produce() -> Any:
            if error is not None:
                raise error
            return results[0]

        return job.conclude(produce, failed, alone=True)

    start(found[0][1], runs[0].out, request, train_all)
    if job.failure is not None:
        raise job.failure
    _conclude(runs)
    return 0


def asked_for(overrides: Sequence[str]) -> Asked:
    """The overrides of each student.

    Args:
        overrides: As typed: those of train-student, `student=A,B,C` or `peers=N`, `baseline=true`.

    Raises:
        ConfigError: There is one student alone, both were typed, or a key that a group of runs
            can't have.
    """
    kept, baseline = [], False
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "baseline":
            if value not in ("true", "false"):
                raise ConfigError(f"{override} must be true or false")
            baseline = value == "true"
        elif place_of(override) == "hydra.run.dir":
            raise ConfigError(
                f"{override}: each student has a directory of its own; type outputs=FOLDER"
            )
        else:
            kept.append(override)
    needs = "mutual needs students, as in student=cnn,mlp; or several of one network, as in peers=2"
    return Asked(overrides_of_each(kept, "peers", "mutual trains one group", needs), baseline)


def runs_of(request: Request, students: list[list[str]]) -> list[tuple[Run, DictConfig]]:
    """Each student's run, and its composed configuration.

    Args:
        request: Of `kd mutual`.
        students: The overrides of each.

    Raises:
        ConfigError: A mistake in one of them, or students that can't learn together.
    """

    def composed(typed: list[str]) -> DictConfig:
        return compose(request.command.config, typed, request.config_dir)

    every = [composed(typed) for typed in students]
    plans = [check(cfg, typed) for cfg, typed in zip(every, students, strict=True)]
    _refuse_unequal(plans)
    before: list[str] = []
    found = []
    for number, (typed, cfg, plan) in enumerate(zip(students, every, plans, strict=True), 1):
        # Of students with the same network each starts from weights of its own.
        kind = digest(network_spec(plan.student))
        offset = before.count(kind)
        before.append(kind)
        if offset:
            typed = [one for one in typed if not is_typed("init_seed", [one])]
            typed.append(f"init_seed={(plan.init_seed + offset) % 2**31}")
            cfg = composed(typed)
        runs = Runs(request.config_dir)
        own = runs.plan(cfg, typed_for(cfg.hydra))
        runs.plans[tuple(typed_for(cfg.hydra))] = _with_peers(own, plans, number)
        one = runs.single(cfg)
        one = dataclasses.replace(one, out=one.out.absolute())  # as Hydra's are
        configuration = {
            "config.yaml": OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]),
            "hydra.yaml": OmegaConf.masked_copy(cfg, "hydra"),
            "overrides.yaml": one.typed,
        }
        found.append((dataclasses.replace(one, configuration=configuration), cfg))
    return found


def _with_peers(plan: DictConfig, plans: list[DictConfig], number: int) -> DictConfig:
    """A student's plan, with what it learns from.

    (The seeds of the others follow from its own and its number, so runs of other seeds are a group
    in the report.)
    """
    plain, each = OmegaConf.to_container(plan), [OmegaConf.to_container(one) for one in plans]
    plain["loss"] = {**plain["loss"], "mutual": dict(_LOSS)}
    plain["peers"] = {
        "number": number,
        "students": [one["student"]["name"] for one in each],
        "settings": {"student": [network_spec(one.student) for one in plans]},
    }
    for key in each[0].keys() - {"student", *PLACES}:  # what their own files set
        values = [one[key] for one in each]
        if any(one != values[0] for one in values):
            plain["peers"]["settings"][key] = values
    made = OmegaConf.create(plain)
    OmegaConf.set_readonly(made, True)
    return made


def _refuse_unequal(plans: list[DictConfig]) -> None:
    """Refuses students that can't learn on the same batches from different weights."""
    first = plans[0]
    for plan in plans:
        if plan.student.checkpoint is not None:
            raise ConfigError(
                f"student.checkpoint={plan.student.checkpoint}: students that teach each other "
                "start from different weights; leave it out"
            )
        for key in _SHARED:
            if OmegaConf.to_container(plan)[key] != OmegaConf.to_container(first)[key]:
                raise ConfigError(
                    f"student={plan.student.name} sets another {key} than "
                    f"student={first.student.name}; students that teach each other share data, "
                    "batches and length, so leave it out of their files"
                )


def train_together(runs: list[Run], dataset: Dataset, started: float, session: Session) -> Results:
    """Trains students that teach each other; those that have ended need no other to be finished."""
    whole = len(runs) == len(runs[0].plan.peers.students)
    results: Results = {}
    if whole or all(_has_ended(run, dataset) for run in runs):
        results = train(runs, dataset, started, "student", session)
    for run in runs:
        alone = LeftAloneError(
            f"{peer_name(run.plan)} in {shown(run.out)} is not finished, but others of its group "
            "are, and it can't be trained without them; type rerun=true to train all anew"
        )
        results.setdefault(run.out, alone)
    return results


def _has_ended(run: Run, dataset: Dataset) -> bool:
    """Whether there is nothing left but to read the test split and to write the result."""
    counters = State(run.out / "state").counters()
    return counters is not None and bool(
        counters["stopped"]
        or counters["epoch"] >= assembly.epochs(run.plan, dataset)
        or counters["step"] >= assembly.length(run.plan, dataset)[0]
    )


def _failure(runs: list[Run], results: Sequence[Any]) -> tuple[Run, Exception | None]:
    """The run that failed for itself, and why; what others fail of comes after it."""
    failed = [
        (run, result)
        for run, result in zip(runs, results, strict=True)
        if isinstance(result, Exception)
    ]
    failed.sort(key=lambda pair: isinstance(pair[1], PeerError | LeftAloneError))
    return failed[0] if failed else (runs[0], None)


def _train_alone(request: Request, one: Run, session: Session) -> None:
    """Trains a student as `kd train-student` does."""
    command = COMMANDS["train-student"]
    overrides, runs = scratch_overrides(one.typed), Runs(request.config_dir)
    register_resolvers(runs)
    cfg = compose(command.config, overrides, request.config_dir)
    alone = runs.single(cfg)
    job = Job(runs, session)
    print(f"alone: {alone.plan.student.name}, {shown(alone.out)}")
    start(cfg, alone.out, Request(command, overrides, request.flags, request.config_dir), job)
    if job.failure is not None:
        raise job.failure


def _place(run: Run) -> str:
    return f"{run.plan.student.name}, {shown(run.out)}"


def _conclude(runs: list[Run]) -> None:
    """Each student beside the same student alone, and where they are."""
    rows: dict[str, FinishedRun | str] = {}
    said, places = [], {}
    for one in runs:
        name = peer_name(one.plan)
        mutual = read(one.out)
        alone, where = scratch_of(mutual.record, one)
        rows |= {f"{name} mutual": mutual, f"{name} alone": alone}
        places |= {f"{name} mutual": shown(one.out), f"{name} alone": where}
        if isinstance(alone, FinishedRun):
            points = 100 * (test_accuracy(mutual) - test_accuracy(alone))
            words = f"{abs(points):.2f} points {'above' if points >= 0 else 'below'} alone"
            said.append(f"{name} {words}")
    known = [row for row in rows.values() if isinstance(row, FinishedRun)]
    measured = columns(In.RUN, known)
    print_table(
        f"{known[0].record.dataset.name}: {len(runs)} students that teach each other, one seed",
        ["", *[column.header for column in measured]],
        [[name, *_cells(measured, row)] for name, row in rows.items()],
    )
    if said:
        print(f"on test: {'; '.join(said)} (one seed; see kd guide methods)")
    for name, where in places.items():
        print(f"{name}: {where}")


def _cells(measured: list[Any], row: FinishedRun | str) -> list[str]:
    if isinstance(row, str):
        return [row, *[""] * (len(measured) - 1)]
    return [column.cell(column.value(row)) for column in measured]
