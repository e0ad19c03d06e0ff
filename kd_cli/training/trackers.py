"""Trackers: objects that are told of a run's beginning, of every epoch, and of its end.

Each entry of `tracker` is a node whose `_target_` makes a `Tracker`. `history.jsonl` and
`metrics.json` stay the truth: a tracker that was told of less can be told again.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf

from kd_cli.config.instantiate import build
from kd_cli.config.plans import has_rounds
from kd_cli.errors import ConfigError, failure_line, first_line, was_interrupted
from kd_cli.files import atomic, read_rows
from kd_cli.runs.asked import Run
from kd_cli.runs.environment import versions
from kd_cli.runs.identity import digest, run_id, run_spec
from kd_cli.runs.ownership import is_round, lock
from kd_cli.runs.record import Record, RecordError
from kd_cli.runs.session import Session
from kd_cli.terminal import shown

log = logging.getLogger("kd")
INTERRUPTED = "interrupted"  # as the error of a run that the same command continues
_ENDED = ".ended"  # in a tracker's folder, once it was told of a finished run's end


@dataclass(frozen=True)
class TrackedRun:
    """Where a run lies, for a tracker whose constructor has an argument `run`.

    Attributes:
        folder: The run's directory.
        own: Inside it, the tracker's own directory; it exists from `begin` on.
        outputs: The folder of all runs.
        command: Its word, such as `distill`.
        sweep: The directory of the sweep of which it is a point; None where it is none.
    """

    folder: Path
    own: Path
    outputs: Path
    command: str
    sweep: Path | None

    @property
    def name(self) -> str:
        """The directory's name; a round of self-training has that of the whole before its own."""
        parts = self.folder.parts
        return "/".join(parts[-2:] if is_round(self.folder) else parts[-1:])

    def rows(self) -> list[dict[str, Any]]:
        """The lines of `history.jsonl`: the finished epochs."""
        return read_rows(self.folder / "history.jsonl")

    def key(self) -> str:
        """A name that no other run has, and that this one keeps when it continues."""
        return lasting_key(self.own / "key")


def lasting_key(file: Path) -> str:
    """The text in a file; a random one is written where there is none."""
    if not file.is_file():
        with atomic(file) as temporary:
            temporary.write_text(secrets.token_hex(8))
    return file.read_text().strip()


class Tracker(Protocol):
    """What a `_target_` of the group `tracker` makes.

    The file of such an option begins with the line `# @package tracker.NAME`. The `_target_` is
    called with the options of its node, and with `run`, a `TrackedRun`, if it has an argument of
    that name. It is made before the data are read, so that a mistake in its options, for which it
    may raise anything, ends the run at once. Keep the options then, and open files or connections
    in `begin`.

    Only `epoch` is needed. A tracker that raises is left out from then on, and the training goes
    on.
    """

    def begin(self, run_id: str, config: dict[str, Any], resumed_after: int) -> None:
        """Called before the first epoch, and again when a stopped run continues.

        Args:
            run_id: The same for the same settings; `rerun=true` makes another run of it.
            config: The run's configuration that can change its result, its `seed`, its `inputs`
                (hashes of data and teacher) and `versions`, as nested plain data.
            resumed_after: The number of finished epochs. They were told before, unless the run was
                killed just then, or the tracker had failed: `TrackedRun.rows` has them all.
        """

    def epoch(self, row: dict[str, Any], model: Any) -> None:
        """Called once after each epoch, when its state is saved.

        Args:
            row: The epoch's line in `history.jsonl`.
            model: The Keras model in training, with the weights that were validated after this
                epoch; None when a run is told of that was finished before.
        """

    def end(self, record: dict[str, Any] | None, error: str | None) -> None:
        """Called when the run is finished, has failed, or was stopped.

        Args:
            record: The content of `metrics.json`; None when the run is not finished.
            error: Why it is not, in one line, `interrupted` after Ctrl-C; None when it is.
        """


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The values of a row by their names: `train/loss`, `validation/accuracy`, ..."""
    found = {key: row[key] for key in ("learning_rate", "examples_per_second")}
    for part in ("train", "validation"):
        found |= {f"{part}/{name}": value for name, value in (row[part] or {}).items()}
    return found


def results(record: Mapping[str, Any]) -> dict[str, float]:
    """What a tracker shows of a finished run."""
    best = (record.get("validation") or {}).get("best") or {"epoch": record["epochs_done"]}
    return {
        "test/accuracy": record["test"]["accuracy"],
        "test/nll": record["test"]["nll"],
        "best_epoch": best["epoch"],
        "total_seconds": record["timings"]["total_seconds"],
    }


class Trackers:
    """The trackers of one training.

    Args:
        plan: The run's checked configuration; its `tracker` holds a node for each, by its name.
        out: The run's directory.
        names: Which of them; None for all.

    Raises:
        ConfigError: A tracker that refuses its options, or has no `epoch`.
    """

    def __init__(self, plan: DictConfig, out: Path, names: Iterable[str] | None = None) -> None:
        self.out = out
        self.begun = False
        self._then = "goes on"
        self._known: set[str] = set()  # those that were told of the beginning
        self._active: dict[str, Tracker] = {}
        for name, node in (plan.get("tracker") or {}).items():
            if names is not None and name not in names:
                continue
            what = f"tracker.{name}: {node['_target_']}"
            make = build({**node, "_partial_": True}, f"tracker.{name}")
            try:
                made = make(**self._where(make, name, plan))
            except ConfigError as error:
                raise ConfigError(f"tracker.{name}: {error}") from error
            except Exception as error:
                raise ConfigError(f"{what} failed: {first_line(error)}") from error
            if not callable(getattr(made, "epoch", None)):
                raise ConfigError(
                    f"{what} made a {type(made).__name__} without a method epoch(row, model)"
                )
            self._active[name] = made

    def _where(
        self, make: Callable[..., Any], name: str, plan: DictConfig
    ) -> dict[str, TrackedRun]:
        try:
            takes = inspect.signature(make).parameters
        except (TypeError, ValueError):  # it is written in C
            takes = {}
        if "run" not in takes:
            return {}
        point = self.out.parent if is_round(self.out) else self.out
        sweep = None if plan.sweep is None else point.parent
        own, outputs = folder_of(self.out, name), Path(plan.outputs)
        return {"run": TrackedRun(self.out, own, outputs, plan.command, sweep)}

    @property
    def present(self) -> bool:
        """Whether there is anyone to be told."""
        return bool(self._active)

    def begin(self, run_id: str, config: Mapping[str, Any], resumed_after: int) -> None:
        self.begun = True
        for name in list(self._active):
            self._tell(name, "begin", run_id, config, resumed_after)

    def epoch(self, row: Mapping[str, Any], model: Any) -> None:
        for name, tracker in list(self._active.items()):
            self._attempt(name, tracker.epoch, copy.deepcopy(row), model)

    def end(self, record: Mapping[str, Any] | None, error: str | None) -> None:
        for name in [name for name in self._active if name in self._known]:
            self._tell(name, "end", record, error)

    def tell_of_finished(self, record: Record) -> None:
        """Tells of a run that was finished before; of its epochs those that never heard of it."""
        self._then = "stays"
        rows = read_rows(self.out / "history.jsonl")
        for name, tracker in list(self._active.items()):
            known = folder_of(self.out, name).is_dir()
            config = _parameters(record.config, record.seed, record.inputs, record.versions)
            self._tell(name, "begin", record.run_id, config, len(rows) if known else 0)
            for row in () if known else rows:
                if name in self._active:
                    self._attempt(name, tracker.epoch, row, None)
            if name in self._active:
                self._tell(name, "end", record.to_json(), None)

    def _tell(self, name: str, what: str, *args: Any) -> None:
        act = getattr(self._active[name], what, lambda *_: None)
        folder = folder_of(self.out, name)

        def tell() -> None:
            if what == "begin":
                folder.mkdir(parents=True, exist_ok=True)
            act(*copy.deepcopy(args))
            self._known.add(name)
            if what == "end" and args[0] is not None:
                (folder / _ENDED).touch()

        self._attempt(name, tell)

    def _attempt(self, name: str, act: Callable[..., Any], *args: Any) -> None:
        """Calls `act`; whatever a tracker meets, the training is worth more."""
        try:
            act(*args)
        except (Exception, SystemExit) as error:
            del self._active[name]
            log.warning(
                "tracker.%s failed (%s: %s), %s %s without it",
                name,
                type(error).__name__,
                first_line(error),
                shown(self.out),
                self._then,
            )


def folder_of(out: Path, name: str) -> Path:
    """The directory of a tracker inside a run's."""
    return out / "trackers" / name


def _parameters(
    config: Mapping[str, Any], seed: int, given: Mapping[str, str], made_with: Mapping[str, str]
) -> dict[str, Any]:
    return {**config, "seed": seed, "inputs": dict(given), "versions": dict(made_with)}


def parameters(plan: DictConfig, given: Mapping[str, str]) -> dict[str, Any]:
    """The `config` of `Tracker.begin`.

    Args:
        plan: The run's checked configuration.
        given: Hashes of its data and its teacher, as far as they are known.
    """
    return _parameters(run_spec(plan), plan.seed, given, versions())


def trackers_of(run: Run, session: Session) -> Trackers:
    """The trackers of a run; made when first asked for.

    Raises:
        ConfigError: For one that can't be made.
    """
    if run.out not in session.trackers:
        session.trackers[run.out] = Trackers(run.plan, run.out)
    return session.trackers[run.out]


def conclude(
    run: Run, session: Session, result: Record | BaseException | None, alone: bool = False
) -> None:
    """Tells a run's trackers how it ended, if they have not been told.

    Args:
        run: The run.
        session: Holds its trackers.
        result: Its record or its failure; None when the process is stopped.
        alone: Whether nothing is left of a mistake of the user's, so that nobody is told of it.
    """
    trackers = session.trackers.pop(run.out, None)
    if trackers is None:
        return
    if isinstance(result, Record):
        trackers.end(result.to_json(), None)
        return
    stopped = result is None or was_interrupted(result)
    if not trackers.begun:
        if stopped or has_rounds(run.plan) or (alone and isinstance(result, ConfigError)):
            return  # (each round has told its own)
        trackers.begin(run_id(run.plan), parameters(run.plan, {}), 0)
    trackers.end(None, INTERRUPTED if stopped else failure_line(result))


def check_options(plans: Iterable[DictConfig]) -> None:
    """Makes each different tracker of some plans once, before any of them begins.

    Raises:
        ConfigError: For one that refuses its options.
    """
    seen = set()
    for plan in plans:
        key = digest(OmegaConf.to_container(plan).get("tracker"))
        if key not in seen:
            Trackers(plan, Path(plan.outputs))
        seen.add(key)


def tell_of_finished(run: Run) -> None:
    """Tells of a finished run those of its trackers that do not know its end.

    Raises:
        ConfigError: For one that can't be made.
    """
    parts = sorted(run.out.glob("round-*")) if has_rounds(run.plan) else [run.out]

    def waiting(out: Path) -> list[str]:
        names = run.plan.get("tracker") or {}
        return [name for name in names if not (folder_of(out, name) / _ENDED).exists()]

    if not any(map(waiting, parts)):
        return
    try:
        with lock(run.out, wait=True):
            for out in parts:
                names = waiting(out)
                with contextlib.suppress(RecordError):
                    record = Record.read(out) if names else None
                    if record is not None:
                        log.info("%s: telling tracker=%s of it", shown(out), ",".join(names))
                        Trackers(run.plan, out, names).tell_of_finished(record)
    except OSError as error:  # the disk can only be read
        log.warning("no tracker is told of %s: %s", shown(run.out), error.strerror)
