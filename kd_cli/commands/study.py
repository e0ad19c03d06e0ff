"""A search's memory: what Optuna has proposed, and what came of it, for several processes at once.

`journal.log` is Optuna's: each proposal, each epoch's validation result, each outcome. A trial is
taken under a lock, and a process holds a lock of its own for as long as it works on it. A trial
whose process has died is free again, and continues under its number. So no trial stays unfinished
for ever, and none is tried again under another number.

What Optuna proposes depends on the seed, the trial's number and the results before it, and not on
how often the search was stopped.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from kd_cli.commands.spaces import Space
from kd_cli.errors import first_line
from kd_cli.files import DamagedError
from kd_cli.runs.identity import digest
from kd_cli.terminal import shown

log = logging.getLogger("kd")
_ABOUT = "kd"  # the attribute of Optuna's trials that says what came of them
_STATES = {
    "finished": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "diverged": TrialState.PRUNED,  # Optuna ranks it below what has finished
    "failed": TrialState.FAIL,
}
_STARTUP = 5  # finished trials before one is pruned
_ENOUGH = 10  # finished trials before importances are more than noise


class Study:
    """The trials of a search.

    Args:
        place: Its folder; it exists.
        name: Of the search.
        spaces: What is proposed.
        start: Proposals for the first trial, by key; the others are drawn.
        seed: Of the proposals.
        maximize: Whether greater values are better.

    Raises:
        DamagedError: The journal can't be read.
    """

    def __init__(
        self,
        place: Path,
        name: str,
        spaces: Sequence[Space],
        start: Mapping[str, Any],
        seed: int,
        maximize: bool,
    ) -> None:
        self.place = place
        self.spaces = list(spaces)
        self.start = dict(start)
        self.seed = seed
        path = place / "journal.log"
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            self.optuna = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(path), _JournalLock(path))),
                study_name=name,
                direction="maximize" if maximize else "minimize",
                pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP),
                load_if_exists=True,
            )
        except (ValueError, LookupError, TypeError, AssertionError) as error:
            remedy = f"remove {shown(place)} and type the command again: points are kept"
            raise DamagedError(path, first_line(error), remedy) from error

    def take(self, trials: int) -> Taken | None:
        """A trial that a dead process has left, or else a new one; None where there is neither.

        Args:
            trials: No new one is made where there are so many.
        """
        with self.alone():
            for left in self._running():
                held = self._lock_of(left.number)
                with contextlib.suppress(Timeout):
                    held.acquire(timeout=0)
                    log.info("trial %d was interrupted; it continues", left.number + 1)
                    self.optuna.sampler = self._sampler(left.number)
                    return Taken(self, Trial(self.optuna, left._trial_id), held)
            every = self._trials()
            number = sum(one.state != TrialState.WAITING for one in every)
            if number >= trials:
                return None
            if not every:
                self.optuna.enqueue_trial(self.start)
            held = self._lock_of(number)
            held.acquire()
            self.optuna.sampler = self._sampler(number)
            return Taken(self, self.optuna.ask(), held)

    def wait(self) -> bool:
        """Waits until another process has left a trial; whether there was one to wait for."""
        running = self._running()
        if running:
            log.info("waiting for another process that works on trial %d", running[0].number + 1)
            with self._lock_of(running[0].number):
                pass
        return bool(running)

    def ended(self) -> list[Mapping[str, Any]]:
        """What `Taken.tell` was told of each trial, by number."""
        ended = [one for one in self._trials() if one.state.is_finished()]
        return [one.user_attrs[_ABOUT] for one in ended if _ABOUT in one.user_attrs]

    def unfinished(self) -> list[int]:
        """The numbers, from 1, of trials that other processes work on, or have left."""
        return [one.number + 1 for one in self._running()]

    def importances(self) -> dict[str, float]:
        """The share of each space in what makes a trial one of the best tenth.

        Empty where fewer than ten trials have finished.

        Source: Watanabe et al. 2023, "PED-ANOVA: Efficiently quantifying hyperparameter importance
            in arbitrary subspaces".
        """
        if sum(one.state == TrialState.COMPLETE for one in self._trials()) < _ENOUGH:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optuna.importance.get_param_importances(self.optuna, evaluator=evaluator)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Lets one process at a time take a trial, or end one."""
        with FileLock(self.place / ".lock"):
            yield

    def _trials(self) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False)

    def _running(self) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _lock_of(self, number: int) -> FileLock:
        """Held by the process that works on a trial."""
        return FileLock(self.place / f".trial-{number + 1}.lock")

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.TPESampler(seed=int(digest([self.seed, number], 8), 16))


class Taken:
    """A trial that this process works on.

    Attributes:
        number: From 1.
        proposed: A value for each space, by its key.
    """

    def __init__(self, study: Study, trial: Trial, held: FileLock) -> None:
        self.number: int = trial.number + 1
        self._study = study
        self._trial = trial
        self._held = held
        self.proposed = {space.key: self._propose(space) for space in study.spaces}

    def _propose(self, one: Space) -> Any:
        """A value for a space; the same again for a trial that has it already."""
        if one.choices:
            return self._trial.suggest_categorical(one.key, one.choices)
        if one.whole:
            low, high, step = int(one.low), int(one.high), int(one.step or 1)
            return self._trial.suggest_int(one.key, low, high, step=step, log=one.log)
        return self._trial.suggest_float(one.key, one.low, one.high, step=one.step, log=one.log)

    @functools.cached_property
    def _reported(self) -> set[int]:
        """Epochs; those before an interruption too."""
        return set(self._study._trials()[self.number - 1].intermediate_values)

    def report(self, epoch: int, value: float) -> None:
        """Notes the best validation result after an epoch."""
        if epoch not in self._reported:
            self._reported.add(epoch)
            self._trial.report(value, epoch)

    def is_behind(self) -> bool:
        """Whether it is worse than the median of the finished trials after as many epochs."""
        return bool(self._trial.should_prune())

    def tell(self, outcome: str, value: float | None, about: Mapping[str, Any]) -> None:
        """Ends the trial.

        Args:
            outcome: `finished`, `pruned`, `diverged` or `failed`.
            value: Of a finished one.
            about: What `Study.ended` gives.
        """
        with self._study.alone():
            self._trial.set_user_attr(_ABOUT, dict(about))
            self._study.optuna.tell(self._trial, value, _STATES[outcome])
            self.leave()
            Path(self._held.lock_file).unlink(missing_ok=True)

    def leave(self) -> None:
        """Lets others continue it, if it has not ended."""
        self._held.release()


class _JournalLock:
    """Lets one process at a time write the journal; the lock of a process that died is free.

    (Optuna's own locks are files, which a killed process leaves for half a minute.)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = FileLock(path.with_name(f".{path.name}.lock"))

    def acquire(self) -> bool:
        self.lock.acquire()
        self._cut()
        return True

    def release(self) -> None:
        self.lock.release()

    def _cut(self) -> None:
        """Takes away the beginning of a line that a killed process, or a full disk, has left."""
        with open(self.path, "rb+") as file:
            if not file.seek(0, os.SEEK_END):
                return
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
