"""A run's directory is written to only while it is held."""

import json
import logging
import threading

import pytest
from omegaconf import OmegaConf

from kd_cli.commands import execute, job
from kd_cli.errors import ConfigError, RunFailed
from kd_cli.runs.asked import Run, Runs
from kd_cli.runs.directory import at_work
from kd_cli.runs.ownership import Busy, lock
from kd_cli.runs.record import Record
from kd_cli.runs.session import Session
from tests.records import content

PLAN = OmegaConf.create({"dataset": None, "device": "auto", "checkpoint": {"every": None}})


@pytest.fixture
def run(work):
    return Run(PLAN, work / "outputs" / "r", ["a=1"], {"overrides.yaml": ["a=1"]})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def works(run, results=None, alone=False, wait=False):
    return at_work(run, [run], results or {}, alone, wait)


def test_nothing_is_written_where_another_process_is_at_work(run):
    with lock(run.out):
        before = names(run.out)
        with pytest.raises(Busy, match="another process is at work in outputs/r"), works(run):
            pass
        assert names(run.out) == before == [".lock"]


def test_who_holds_it_leaves_configuration_and_log(run):
    run.out.mkdir(parents=True)
    (run.out / "error.json").write_text("{}")
    with works(run):
        logging.getLogger("kd").warning("hello")
        assert names(run.out) == [".hydra", ".lock", "kd.log"]
    logging.getLogger("kd").warning("later")
    text = (run.out / "kd.log").read_text()
    assert "WARNING hello" in text and "later" not in text
    assert (run.out / ".hydra" / "overrides.yaml").read_text() == "- a=1\n"


def test_a_failure_is_recorded_and_a_mistake_in_a_new_directory_leaves_none(run, work):
    with works(run, {run.out: ValueError("broken")}):
        pass
    assert json.loads((run.out / "error.json").read_text())["message"] == "broken"
    assert "ValueError: broken" in (run.out / "kd.log").read_text()
    with works(run, {run.out: ConfigError("mistake")}, alone=True):
        pass  # the directory is not new
    assert "error.json" not in names(run.out) and "kd.log" in names(run.out)
    new = Run(run.plan, work / "outputs" / "other" / "r", [])
    with works(new, {new.out: ConfigError("mistake")}, alone=True):
        pass
    assert names(work / "outputs") == ["r"]
    with works(new, {new.out: ConfigError("mistake")}):  # of a sweep
        pass
    assert "mistake" in (new.out / "error.json").read_text()


def test_a_finished_run_is_only_read(run, monkeypatch):
    Record(**content()).write(run.out)
    monkeypatch.setattr(execute, "load_dataset", lambda *args: None)
    monkeypatch.setattr(execute, "inputs", lambda *args: {})
    assert execute.execute(run, Session(), table=False).test.accuracy == 0.9
    assert names(run.out) == ["metrics.json"]  # no lock, no log


def test_what_concerns_all_points_is_recorded_by_each(run, work, monkeypatch):
    def broken(*args):
        raise ValueError("no data")

    monkeypatch.setattr(execute, "load_dataset", broken)
    monkeypatch.setattr(execute, "trackers_of", lambda *args: None)
    other = Run(PLAN, work / "outputs" / "other", [])
    results = execute.execute_together([run, other, run], Session())
    assert [str(one) for one in results] == ["no data"] * 3
    for out in (run.out, other.out):
        assert json.loads((out / "error.json").read_text())["message"] == "no data"


def test_a_point_that_another_process_finishes_meanwhile_is_taken_from_there(run):
    with lock(run.out):
        # In another thread, as in another process: the lock is the directory's.
        waiter = threading.Thread(target=lambda: seen.append(list(waits())))
        seen = []

        def waits():
            with works(run, wait=True):
                yield names(run.out)

        waiter.start()
        Record(**content()).write(run.out)
    waiter.join(10)
    assert seen == [[[".lock", "metrics.json"]]]  # nothing of its own


def test_a_lock_whose_directory_was_removed_is_taken_anew(run):
    with lock(run.out):
        (run.out / ".lock").unlink()
        run.out.rmdir()
    with lock(run.out):
        assert names(run.out) == [".lock"]


def test_busy_points_are_looked_at_again_at_the_end(run, monkeypatch):
    """What failed once more is a failure; what another process finished is none."""
    asked = job.Job(Runs(), Session())

    def busy():
        raise Busy(run.out)

    assert asked.conclude(busy, run) is None and asked.busy == [run] and not asked.failed
    calls = []
    monkeypatch.setattr(execute, "execute", lambda *args, **options: calls.append(options))
    asked.look_again()
    assert calls == [{"table": False, "wait": True}] and not asked.failed and not asked.busy

    def fail(*args, **options):
        raise ValueError("broken")

    asked.conclude(busy, run)
    monkeypatch.setattr(execute, "execute", fail)
    asked.look_again()
    assert asked.failed == {run.out: "broken"}
    asked.conclude(busy, run, alone=True)  # a single run waits for nobody
    assert isinstance(asked.failure, Busy)
    with pytest.raises(RunFailed, match="mistake"):
        asked.conclude(lambda: (_ for _ in ()).throw(ConfigError("mistake")), run)
