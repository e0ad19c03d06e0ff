"""Whatever interrupts a run, the same command again ends with the undisturbed run's result."""

from __future__ import annotations

import errno
import functools
import json
import shutil
from pathlib import Path

import pytest
from omegaconf import DictConfig

from kd_cli import cli
from kd_cli.commands import execute, guide
from kd_cli.config.check import check
from kd_cli.config.compose import compose
from kd_cli.files import open_npz, read_rows
from kd_cli.runs import identity
from kd_cli.runs.asked import Run
from kd_cli.runs.resolvers import register_resolvers
from kd_cli.runs.session import Session
from kd_cli.training import loop, train
from tests.conftest import SMALL, Disk, npz
from tests.rules.test_readme import write_examples

TIMES = ("seconds", "examples_per_second")
COUNTED_TIMES = ("seconds", "train_seconds", "epoch_seconds", "learners")


def result(out: Path) -> dict:
    """All that a finished run leaves, without what a clock gave."""
    metrics = json.loads((out / "metrics.json").read_text())
    del metrics["timings"]
    rows = [
        {key: value for key, value in row.items() if key not in TIMES}
        for row in read_rows(out / "history.jsonl")
    ]
    arrays = {}
    for name in ("predictions.npz", "state/last.npz"):
        with open_npz(out / name) as archive:
            arrays |= {f"{name} {key}": archive[key].tobytes() for key in archive.files}
    del arrays["state/last.npz record"]
    with open_npz(out / "state" / "last.npz") as archive:
        record = json.loads(str(archive["record"]))
    counters = {k: v for k, v in record["counters"].items() if k not in COUNTED_TIMES}
    return {"metrics": metrics, "rows": rows, "arrays": arrays, "counters": counters}


DATA = ("dataset=npz", "dataset.path=quarters.npz", *SMALL)
# A teacher whose head a student can reuse.
BEGUN = [f"network.{key}" for key in ("filters=[4,4]", "batch_norm=true", "units=[5]")]
POOLING = ("teacher=resnet8", "teacher.network.widths=[3,4,6]", "epochs=2", "teacher_dir=pooling")
# Dropout, moments, a moving rate, early stopping and a batch that does not divide the epoch.
TRICKY = (
    "student.network.dropout=0.3",
    "optimizer=adamw",
    "schedule=cosine",
    "early_stopping.patience=3",
    "batch_size=48",
    "epochs=5",
    "teacher.train_if_missing=false",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the data and a trained teacher, to be copied."""
    folder = tmp_path_factory.mktemp("home")
    npz.__wrapped__(folder)
    write_examples((guide.FOLDER / "losses.md").read_text(), folder / "my_conf")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["train-teacher", *DATA]) == 0
        assert cli.main(["train-teacher", *DATA[:2], *POOLING]) == 0
        begun = [f"teacher.{key}" for key in BEGUN]
        words = ["teacher=cnn", *begun, "epochs=1", "teacher_dir=begun"]
        assert cli.main(["train-teacher", *DATA[:2], *words]) == 0
    return folder


@pytest.fixture
def place(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a fresh copy of `home` and goes there."""
    register_resolvers()
    monkeypatch.delenv("KD_CACHE_DIR", raising=False)

    def fresh(name: str) -> None:
        shutil.copytree(home, tmp_path / name, symlinks=True)
        monkeypatch.chdir(tmp_path / name)

    return fresh


def given(more: tuple[str, ...]) -> list[str]:
    """Without the keys that describe a teacher, where one is given as a file."""
    taken = any(word.startswith("teacher.checkpoint=") for word in more)
    return [word for word in (*DATA, *TRICKY) if not (taken and word.startswith("teacher"))]


@functools.cache
def plan_of(typed: tuple[str, ...]) -> DictConfig:
    """It holds no absolute path, so all places share it."""
    return check(compose("distill", list(typed), "my_conf"), list(typed))


def runs(alphas: tuple[float, ...], *more: str) -> list[Run]:
    made = []
    for alpha in alphas:
        typed = [*given(more), f"alpha={alpha}", *more]
        plan = plan_of(tuple(typed))
        made.append(Run(plan, identity.run_dir(plan), typed))
    return made


@pytest.fixture
def session() -> Session:
    return Session()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alphas", "offset", "step"),
    [
        pytest.param((0.3,), 1, 4, id="one"),
        pytest.param((0.2, 0.7), 1, 29, id="joint"),  # the same writes, twice
    ],
)
def test_a_failure_at_any_write_loses_nothing(place, monkeypatch, alphas, offset, step, session):
    place("whole")
    disk = Disk(monkeypatch)
    whole = runs(alphas)
    for answer in execute.execute_together(whole, session):
        assert not isinstance(answer, Exception)
    expected = [result(one.out) for one in whole]
    writes = disk.count
    assert writes > 30
    for refused in range(offset, writes + 1, step):
        place(f"cut{refused}")
        again = runs(alphas)
        disk.count, disk.refused = 0, refused
        try:
            execute.execute_together(again, session)
        except OSError as error:
            assert error.errno == errno.ENOSPC
        disk.refused = None
        execute.execute_together(again, session)
        assert [result(one.out) for one in again] == expected, f"write {refused} of {writes}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        pytest.param(["memory_gib=4"], id="in-memory"),
        pytest.param(["memory_gib=0"], id="streamed"),
        pytest.param(["augment=flip_crop_mixup", "view=independent"], id="mixed"),
        pytest.param(["augment=flip_crop", "cache.views=2", "memory_gib=0"], id="kept-views"),
        # The layer that the guide has you write, with its own weights and moments.
        pytest.param(["loss=[hinton,projected]"], id="own-weights"),
        # Banks, embeddings, and negatives that are drawn anew at each step.
        pytest.param(["loss=[hinton,crd]", "loss.crd.negatives=50"], id="crd"),
        pytest.param(
            ["loss=[hinton,hint]", "loss.hint.pairs=[[pooled,pooled]]"],
            id="hint",
        ),
        # A student of other layers than it is configured with, the last of which are frozen.
        pytest.param(
            [
                "loss=[hinton,simkd]",
                "teacher.checkpoint=pooling",
                "student=cnn",
                "student.network.block_dropout=0.2",
            ],
            id="simkd",
        ),
        # The last layer first: killed in both phases, each with its own optimizer.
        pytest.param(
            [
                "student=cnn",
                *(f"student.{key}" for key in BEGUN),
                "student.checkpoint=begun",
                "freeze_epochs=2",
            ],
            id="head-first",
        ),
    ],
)
def test_a_state_inside_an_epoch_continues_there(place, monkeypatch, more, session):
    monkeypatch.setattr(loop, "CHUNK_SECONDS", 0.0)  # a chunk is a step
    place("whole")
    (whole,) = runs((0.3,), *more)
    execute.execute(whole, session, table=False)
    expected = result(whole.out)

    class Killed(BaseException):
        pass

    saves = []
    real = loop.State.save

    def save(self, variables, owner, counters, best):
        real(self, variables, owner, counters, best)
        saves.append((counters["epoch"], counters["step"]))
        if len(saves) % 2 == 0:
            raise Killed

    monkeypatch.setattr(loop.State, "save", save)
    place("cut")
    (cut,) = runs((0.3,), *more, "checkpoint.minutes=1e-9")
    for _ in range(40):
        try:
            execute.execute(cut, session, table=False)
            break
        except Killed:
            continue
    inside = [(epoch, step) for epoch, step in saves if step % 3]
    assert len(inside) >= 5, saves  # 3 steps an epoch
    assert result(cut.out) == expected


@pytest.mark.slow
def test_points_that_were_killed_at_different_steps_continue_together(place, monkeypatch, session):
    place("whole")
    alphas = (0.2, 0.5, 0.8)
    whole = runs(alphas)
    execute.execute_together(whole, session)
    expected = [result(one.out) for one in whole]
    place("cut")
    first, second, third = runs(alphas)
    execute.execute(first, session, table=False)  # finished
    with monkeypatch.context() as patch:  # stopped after its second epoch
        real = loop.Training.end_epoch

        def end_epoch(self, *args):
            row = real(self, *args)
            if row["epoch"] == 2:
                raise KeyboardInterrupt
            return row

        patch.setattr(loop.Training, "end_epoch", end_epoch)
        with pytest.raises(KeyboardInterrupt):
            execute.execute(second, session, table=False)
    execute.execute_together([first, second, third], session)
    for one, other in zip((first, second, third), expected, strict=True):
        found = result(one.out)
        assert found["rows"] == approximately(other["rows"])
        assert found["metrics"]["test"] == pytest.approx(other["metrics"]["test"], rel=1e-5)


def approximately(rows):
    return [
        {
            key: pytest.approx(value, rel=1e-4, abs=1e-6)
            if isinstance(value, dict | float)
            else value
            for key, value in row.items()
        }
        for row in rows
    ]


@pytest.mark.slow
def test_a_cached_and_a_live_teacher_give_the_same_metrics(place, session):
    place("both")
    records = []
    for kind in ("float32", "none"):
        (one,) = runs((0.1,), f"cache.logits={kind}", "temperature=2")
        records.append(
            (execute.execute(one, session, table=False), read_rows(one.out / "history.jsonl"))
        )
    (cached, cached_rows), (live, live_rows) = records
    assert cached["teacher"]["outputs"] == "cached as float32"
    assert live["teacher"]["outputs"] == "live (cache.logits=none)"
    assert cached["run_id"] != live["run_id"]
    for a, b in zip(cached_rows, live_rows, strict=True):
        assert a["train"] == pytest.approx(b["train"], rel=1e-4)
        assert a["validation"] == pytest.approx(b["validation"], rel=1e-4)
    assert cached["test"] == pytest.approx(live["test"], rel=1e-4)
    assert cached["teacher"]["test_nll"] == pytest.approx(live["teacher"]["test_nll"], rel=1e-6)


@pytest.mark.slow
def test_a_directory_that_vanishes_is_one_line(place, monkeypatch, capfd):
    place("gone")
    typed = [*DATA, *TRICKY]
    real = loop.Training.end_epoch

    def end_epoch(self, *args):
        row = real(self, *args)
        if row["epoch"] == 2 and "distill" in self.run.out.parts:
            shutil.rmtree(self.run.out)
        return row

    monkeypatch.setattr(loop.Training, "end_epoch", end_epoch)
    assert cli.main(["distill", *typed]) == 1
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("kd: failed: ") and "No such file or directory" in error
    monkeypatch.setattr(loop.Training, "end_epoch", real)
    assert cli.main(["distill", *typed]) == 0


@pytest.mark.slow
def test_the_points_of_a_sweep_trace_once(place, monkeypatch):
    place("sweep")
    session, engines = Session(), set()
    for one in [*runs((0.1, 0.9)), *runs((0.5,), "temperature=9", "seed=3")]:
        execute.execute(one, session, table=False)
        engine = session.engine.made
        engines.add(engine)
    assert len(engines) == 1 and engine._chunk.experimental_get_tracing_count() == 1
    # A point that reused a graph gives what a fresh process gives.
    reused, session = result(one.out), Session()
    shutil.rmtree(one.out)
    execute.execute(one, session, table=False)
    assert result(one.out) == reused


@pytest.mark.slow
def test_the_logits_cache_is_shared_and_checked(place, caplog, session):
    place("cache")
    one, two = runs((0.1, 0.9))
    execute.execute(one, session, table=False)
    stamps = [p.stat().st_mtime_ns for p in Path("outputs/cache/logits").rglob("logits.npy")]
    execute.execute(two, session, table=False)
    found = sorted(Path("outputs/cache/logits").rglob("logits.npy"))
    assert sorted(p.stat().st_mtime_ns for p in found) == sorted(stamps)
    expected = result(one.out)
    content = bytearray(found[0].read_bytes())
    content[-3] ^= 0xFF
    found[0].write_bytes(content)
    session = Session()  # another process
    shutil.rmtree(one.out)
    execute.execute(one, session, table=False)
    assert "damaged (the checksum is wrong); computing again" in caplog.text
    assert result(one.out) == expected


@pytest.mark.slow
def test_a_point_whose_files_cannot_be_written_fails_alone(place, monkeypatch, session):
    place("one")
    both = runs((0.2, 0.7))
    genuine = train.save_model

    def save_model(path, model):
        if path.parent == both[0].out:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        genuine(path, model)

    monkeypatch.setattr(train, "save_model", save_model)
    first, second = execute.execute_together(both, session)
    assert isinstance(first, OSError) and second["alpha"] == 0.7
    monkeypatch.setattr(train, "save_model", genuine)
    first, again = execute.execute_together(both, session)
    assert first["alpha"] == 0.2 and again == second
    # The one that was finished later still says how many had shared its seconds.
    assert first["timings"]["learners"] == second["timings"]["learners"] == 2


@pytest.mark.slow
def test_what_a_kill_left_of_a_write_is_removed(place, session):
    place("left")
    (one,) = runs((0.3,))
    (one.out / "state").mkdir(parents=True)
    left = [one.out / ".tmp-1-model.keras", one.out / "state" / ".tmp-1-last.npz"]
    for file in left:
        file.write_bytes(b"half")
    execute.execute(one, session, table=False)
    assert not any(file.exists() for file in left)


@pytest.mark.slow
def test_a_loss_without_a_keyword_does_not_reuse_the_graph_of_one_with_it(place):
    place("keywords")
    found = []
    for cleared in (False, True):
        session = Session()
        (default,) = runs((0.3,), "~loss.hinton.t_squared")  # its default is true
        (without,) = runs((0.3,), "t_squared=false")
        execute.execute(default, session, table=False)
        if cleared:
            session = Session()
        execute.execute(without, session, table=False)
        found.append((result(default.out), result(without.out)))
        shutil.rmtree("outputs/distill")
    assert found[0] == found[1]
    assert found[0][0]["rows"] != found[0][1]["rows"]


@pytest.mark.slow
def test_a_live_teacher_s_answers_belong_to_their_split(place, session):
    place("splits")
    (teacher,) = Path("outputs/teachers").glob("*/model.keras")
    more = ("cache.logits=none", f"teacher.checkpoint={teacher}", "dataset.limit=30")
    nlls = []
    for seed in (0, 1, 0):
        (one,) = runs((0.3,), *more, f"dataset.split_seed={seed}", f"seed={len(nlls)}")
        record = execute.execute(one, session, table=False)
        with open_npz(one.out / "predictions.npz") as archive:
            labels, logits_ = archive["labels"], archive["teacher_logits"]
        assert record["teacher"]["test_accuracy"] == (logits_.argmax(1) == labels).mean()
        nlls.append(record["teacher"]["test_nll"])
    assert nlls[0] == nlls[2] != nlls[1]
