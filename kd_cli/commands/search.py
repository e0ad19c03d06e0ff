"""A search: Optuna proposes values, and each trial is an ordinary point of a sweep.

The search's own folder lies beside its points. Trials are compared on the validation split; the
test split is not read here. The same search continues where it was stopped, and values that were
tried before are answered from their points.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from kd_cli.commands.execute import execute
from kd_cli.commands.spaces import Space
from kd_cli.commands.study import Study, Taken
from kd_cli.commands.table import Command
from kd_cli.config.compose import compose
from kd_cli.config.keys import PLACES
from kd_cli.config.overrides import override_key
from kd_cli.errors import DISK, ConfigError, Pruned, failure_line, was_interrupted
from kd_cli.files import read_json, read_rows
from kd_cli.runs.asked import Run, Runs
from kd_cli.runs.identity import digest
from kd_cli.runs.record import PRUNED
from kd_cli.runs.resolvers import register_resolvers
from kd_cli.runs.session import Session
from kd_cli.terminal import shown
from kd_cli.training.trackers import check_options

log = logging.getLogger("kd")
_OUTCOMES = ("finished", "pruned", "diverged", "failed")
_QUARTER = 4  # no trial is pruned in the first quarter of its epochs


@dataclass(frozen=True)
class Tried:
    """A trial and what came of it.

    Attributes:
        number: From 1.
        typed: The override of each space, in their order.
        values: The same values, by the spaces' keys.
        outcome: `finished`, `pruned`, `diverged` or `failed`.
        directory: The name of its point; empty where its values make no run.
        epochs: Epochs trained.
        validation: `accuracy` and `nll` of the chosen epoch, or the best so far. May be empty.
        why: Of what is not finished.
        inputs: Hashes of the data and the split of a finished run.
    """

    number: int
    typed: Sequence[str]
    values: Mapping[str, Any]
    outcome: str = "failed"
    directory: str = ""
    epochs: int = 0
    validation: Mapping[str, float] = dataclasses.field(default_factory=dict)
    why: str = ""
    inputs: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def in_words(self) -> str:
        if self.outcome == "finished":
            accuracy, nll = self.validation["accuracy"], self.validation["nll"]
            return f"validation {100 * accuracy:.2f} %, NLL {nll:.4f}"
        return f"{self.outcome}: {self.why}"


class OtherDataError(ConfigError):
    """The data are not those of the trials before."""


class Search:
    """A search over the spaces of some keys.

    Args:
        command: Whose runs are the trials: `distill` or `train-student`.
        overrides: With one value, the same in every trial; `sweep=NAME` names the folder.
        spaces: At least one.
        prune: `median` gives trials up that are behind; `none` trains each to its end.
        config_dir: The user's `--config-dir`.
        session: Of the command.

    Attributes:
        name: Hash of all that makes it this search; not of the number of trials.
        folder: Of the points.
        place: The search's own folder, in `folder`.
        monitor: What trials are compared by on the validation split: `accuracy` or `nll`.
        plan: Of the first point that was checked.

    Raises:
        ConfigError: A mistake in the overrides, or at an end of a space. Nothing has been written.
    """

    def __init__(
        self,
        command: Command,
        overrides: Sequence[str],
        spaces: Sequence[Space],
        prune: str,
        config_dir: str | None,
        session: Session,
    ) -> None:
        self.command = command
        self.overrides = list(overrides)
        self.spaces = list(spaces)
        self.prune = prune
        self.config_dir = config_dir
        self.session = session
        self.runs = Runs(config_dir)
        first = self._check()
        self.plan = first.plan
        self.monitor: str = first.plan.early_stopping.monitor
        self.folder = first.out.parent
        counted = [one for one in self.overrides if override_key(one).split(".")[0] not in PLACES]
        spec = [space.spec() for space in sorted(self.spaces, key=lambda space: space.name)]
        self.name = digest([command.word, sorted(counted), spec, prune], 8)
        self.place = self.folder / f"search-{self.name}"

    def _check(self) -> Run:
        """Composes and checks points at the ends of all spaces; returns one."""
        every = [space.probes() for space in self.spaces]
        found = []
        for number in range(max(map(len, every))):
            probes = [probes[min(number, len(probes) - 1)] for probes in every]
            typed = [one.override(value) for one, value in zip(self.spaces, probes, strict=True)]
            found.append(self._point(typed, number))
        plan = found[0].plan
        if plan.dataset.validation_fraction == 0:
            raise ConfigError(
                "dataset.validation_fraction=0: tune compares trials on the validation split, and "
                "test is not for choosing; leave it out"
            )
        check_options([plan])
        return found[0]

    def _point(self, typed: Sequence[str], number: int) -> Run:
        """The run with these values, as a point of a sweep.

        Raises:
            ConfigError: These values make no run.
        """
        register_resolvers(self.runs)  # another search may have been made since
        cfg = compose(self.command.config, [*self.overrides, *typed], self.config_dir)
        run = self.runs.point(cfg, number)
        cfg.hydra.runtime.output_dir = os.path.abspath(run.out)
        configuration = {
            "config.yaml": OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]),
            "hydra.yaml": OmegaConf.masked_copy(cfg, "hydra"),
            "overrides.yaml": run.typed,
        }
        return dataclasses.replace(run, configuration=configuration)

    @functools.cached_property
    def study(self) -> Study:
        """What was tried, on the disk."""
        self.place.mkdir(parents=True, exist_ok=True)
        maximize = self.monitor == "accuracy"
        start = self._start()
        return Study(self.place, self.name, self.spaces, start, self.plan.seed, maximize)

    def _start(self) -> dict[str, Any]:
        """The settings without the search, as far as they lie in its spaces."""
        cfg = compose(self.command.config, self.overrides, self.config_dir)
        chosen = cfg.hydra.runtime.choices
        values = {
            space.key: chosen[space.name]
            if space.name in chosen
            else OmegaConf.select(cfg, space.name, throw_on_resolution_failure=False)
            for space in self.spaces
        }
        found = {space.key: space.proposal(values[space.key]) for space in self.spaces}
        return {key: value for key, value in found.items() if value is not None}

    def run(self, trials: int, until: float = float("inf")) -> int:
        """Works on the search until so many trials have ended, whoever ran them.

        Args:
            trials: In all, those of earlier commands included.
            until: Of `time.monotonic`: no new trial is begun after it.

        Returns:
            How many trials of this call failed.

        Raises:
            ConfigError: A trial failed for what was typed, and none has finished.
        """
        failed = 0
        while True:
            taken = self.study.take(trials if time.monotonic() < until else 0)
            if taken is not None:
                try:
                    failed += self._try(taken, trials).outcome == "failed"
                finally:
                    taken.leave()
            elif not self.study.wait():
                return failed

    def tried(self) -> list[Tried]:
        """The trials that have ended, by number."""
        return [Tried(**about) for about in self.study.ended()]

    def rank(self, one: Tried) -> tuple[float, ...]:
        """Sorts trials, the best first: those that finished by their validation results."""
        place = _OUTCOMES.index(one.outcome)
        if place:
            return place, -one.epochs, one.number
        accuracy, nll = one.validation["accuracy"], one.validation["nll"]
        best = (-accuracy, nll) if self.monitor == "accuracy" else (nll, -accuracy)
        return (place, *best, one.number)

    def winner(self, among: int | None = None) -> Tried | None:
        """The best of the trials that finished, or of the first so many; None without any."""
        finished = [one for one in self.tried()[:among] if one.outcome == "finished"]
        return min(finished, key=self.rank, default=None)

    def _try(self, taken: Taken, trials: int) -> Tried:
        """Trains a trial to its end, or answers from its directory."""
        proposed = {space: taken.proposed[space.key] for space in self.spaces}
        typed = [space.override(value) for space, value in proposed.items()]
        values = {space.key: space.value(value) for space, value in proposed.items()}
        told = Tried(taken.number, typed, values)
        log.info("trial %d of %d: %s", told.number, max(trials, told.number), " ".join(typed))
        mistake: ConfigError | None = None
        try:
            run = self._point(typed, taken.number)
        except ConfigError as error:  # values that make no run together
            told = dataclasses.replace(told, why=str(error))
        else:
            told = dataclasses.replace(told, directory=run.out.name)
            try:
                told = self._outcome(taken, run, told)
            except OtherDataError:
                raise
            except ConfigError as error:
                told, mistake = dataclasses.replace(told, why=str(error)), error
        value = told.validation[self.monitor] if told.outcome == "finished" else None
        taken.tell(told.outcome, value, dataclasses.asdict(told))
        best = self.winner()
        if mistake is not None and best is None:
            raise mistake
        text = f"trial {told.number}: {told.in_words()}"
        if best is not None:
            text += f" (best so far: trial {best.number}, {best.in_words()})"
        log.info("%s", text)
        return told

    def _outcome(self, taken: Taken, run: Run, told: Tried) -> Tried:
        """Trains a trial's run, or reads what came of it.

        Raises:
            ConfigError: The run can't be trained as it was typed.
            OtherDataError, OSError: No trial could go on: this one is not over.
        """
        self._report_history(taken, run)
        before = read_json(run.out / PRUNED, "remove it")
        if before is not None and before.get("search") == self.name:
            return _pruned(told, before)

        def judge(epoch: int, epochs: int, best: Mapping[str, float]) -> None:
            taken.report(epoch, best[self.monitor])
            if self.prune != "none" and _QUARTER * epoch >= epochs and taken.is_behind():
                why = f"worse than the median after {epoch} epochs"
                about = {"search": self.name, "trial": told.number, "epoch": epoch}
                raise Pruned({**about, "validation": dict(best), "why": why})

        self.session.judges[run.out] = judge
        try:
            record = execute(run, self.session, table=False, wait=True)
        except Pruned as error:
            return _pruned(told, error.record)
        except Exception as error:
            return _failed(told, error)
        finally:
            self.session.judges.pop(run.out, None)
        if record.validation is None:
            raise ConfigError(
                f"{record.dataset.name} has no validation split, and test is not for choosing; "
                "tune needs labelled images to hold out"
            )
        inputs = {key: record.inputs[key] for key in ("data", "split")}
        if any(one.inputs not in ({}, inputs) for one in self.tried()):
            raise OtherDataError(
                f"the trials in {shown(self.place)} saw other data than there are now; type "
                "sweep=NAME for a new search"
            )
        return dataclasses.replace(
            told,
            outcome="finished",
            epochs=record.epochs_done,
            validation={key: record.validation.best[key] for key in ("accuracy", "nll")},
            inputs=inputs,
        )

    def _report_history(self, taken: Taken, run: Run) -> None:
        """Tells Optuna of the epochs that a run has had already."""
        best: float | None = None
        for row in read_rows(run.out / "history.jsonl"):
            if row.get("validation"):
                value = row["validation"][self.monitor]
                better = max if self.monitor == "accuracy" else min
                best = value if best is None else better(best, value)
                taken.report(row["epoch"], best)


def _pruned(told: Tried, record: Mapping[str, Any]) -> Tried:
    return dataclasses.replace(
        told,
        outcome="pruned",
        epochs=record["epoch"],
        validation=record["validation"],
        why=record["why"],
    )


def _failed(told: Tried, error: Exception) -> Tried:
    """What came of a trial whose run failed; raises what no other trial would escape."""
    from kd_cli.training.loop import NonFiniteError

    if was_interrupted(error):
        raise KeyboardInterrupt from error
    if isinstance(error, ConfigError) or getattr(error, "errno", None) in DISK:
        raise error
    traceback.clear_frames(error.__traceback__)  # they hold the engine
    outcome = "diverged" if isinstance(error, NonFiniteError) else "failed"
    return dataclasses.replace(told, outcome=outcome, why=failure_line(error))
