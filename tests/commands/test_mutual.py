"""Students that teach each other: finished runs each, trained, continued and refused together."""

import shutil

import pytest

from kd_cli.commands import execute, mutual
from kd_cli.commands.mutual import asked_for
from kd_cli.commands.table import COMMANDS, Request
from kd_cli.files import read_rows
from kd_cli.report import groups
from kd_cli.runs import finished
from kd_cli.runs.resolvers import register_resolvers
from kd_cli.runs.session import Session
from kd_cli.training import loop
from tests.conftest import Disk, read_record
from tests.whole.test_resume import result


@pytest.fixture
def data(npz):
    return ["dataset=npz", f"dataset.path={npz}", "epochs=2"]


def records(work, command="mutual"):
    """By number; scratch students by init_seed."""
    found = [read_record(p.parent) for p in (work / "outputs" / command).rglob("metrics.json")]
    number = (lambda c: c["peers"]["number"]) if command == "mutual" else lambda c: c["init_seed"]
    return {number(one["config"]): one for one in found}


def test_students_as_they_are_typed():
    assert asked_for(["student=a,b", "epochs=3"]).students == [
        ["epochs=3", "student=a"],
        ["epochs=3", "student=b"],
    ]
    three = asked_for(["peers=3", "student=a", "baseline=true"])
    assert three.students == [["student=a"]] * 3 and three.baseline


def test_two_of_a_kind_with_their_baseline_and_again(kd, work, data):
    words = ["mutual", *data, "peers=2", "baseline=true", "seed=4"]
    done = kd(*words)
    assert done.code == 0, done.err
    first, second = (records(work)[n] for n in (1, 2))
    alone = records(work, "train-student")
    assert first["config"]["init_seed"] == 4 and second["config"]["init_seed"] == 5
    assert first["weights_sha256"] != second["weights_sha256"]
    assert first["loss"] == (
        "CE(labels, student) + mean over the other students of KL(other || student)"
    )
    for name, record in (("(1)", first), ("(2)", second)):
        assert record["epochs_done"] == 2 and record["timings"]["learners"] == 2
        assert f"mlp {name} 2/2" in done.err  # its progress
        other = alone[record["config"]["init_seed"]]
        for row, one in (("mutual", record), ("alone", other)):
            (line,) = (x for x in done.out.splitlines() if x.startswith(f"mlp {name} {row} "))
            assert f"{100 * one['test']['accuracy']:.2f}" in line
    # The report pairs each with the same student alone.
    every, _ = groups.grouped(finished.find([work / "outputs"]).runs)
    names = {group.name: group for group in every}
    assert set(names) == {"scratch", "mutual peers.number=1", "mutual peers.number=2"}
    compared = groups.compared(every)
    for number, record in ((1, first), (2, second)):
        (pair,) = compared[names[f"mutual peers.number={number}"].key].pairs
        assert [run.record["config"]["init_seed"] for run in pair] == [
            record["config"]["init_seed"]
        ] * 2
    again = kd(*words)
    assert again.code == 0 and again.err.count("is finished") == 4
    assert read_record(finished.find([work / "outputs/mutual"]).runs[0].folder) == first
    fresh = kd("mutual", *data, "peers=2", "seed=4", "rerun=true")
    assert fresh.code == 0 and len(list((work / "outputs/mutual").rglob("metrics.json"))) == 4
    hashes = {
        read_record(p.parent)["weights_sha256"] for p in work.rglob("mutual/*/*/metrics.json")
    }
    assert hashes == {first["weights_sha256"], second["weights_sha256"]}  # seeds feed everything


def test_other_networks_start_as_alone_and_are_other_runs(work, data):
    (first, _), (second, _) = runs_of(*data, "student=mlp,cnn")
    assert first.plan.init_seed == second.plan.init_seed == 0
    assert first.plan.peers.students == second.plan.peers.students == ["mlp", "cnn"]
    identities = set()
    for words in (
        ["student=mlp,cnn"],
        ["student=mlp,resnet8"],
        ["student=mlp,cnn", "student.input.scale=1"],
        ["student=mlp,mlp,mlp"],
        ["student=mlp,cnn", "seed=1"],
    ):
        (one, _), *_ = runs_of(*data, *words)
        identities.add(one.out.name)
    assert len(identities) == 5


def runs_of(*words):
    request = Request(COMMANDS["mutual"])
    register_resolvers()
    return mutual.runs_of(request, asked_for(list(words)).students)


def test_an_own_file_counts_for_the_other_and_can_not_change_what_is_shared(kd, work, data):
    folder = work / "mine/student"
    folder.mkdir(parents=True)
    text = "# @package _global_\ndefaults: [/network@student.network: mlp, _self_]\n{}\n"
    for name, more in (
        ("slow", "learning_rate: 0.0001"),
        ("slower", "learning_rate: 0.00001"),
        ("long", "epochs: 7"),
        ("other", "dataset: {num_classes: 3}"),
    ):
        own = f"student: {{name: {name}, network: {{units: [4]}}}}\n{more}"
        (folder / f"{name}.yaml").write_text(text.format(own))
    request = Request(COMMANDS["mutual"], config_dir="mine")
    register_resolvers()
    names = set()
    for other in ("slow", "slower"):
        students = asked_for([*data, f"student=mlp,{other}"]).students
        (one, _), (two, _) = mutual.runs_of(request, students)
        assert two.plan.learning_rate < one.plan.learning_rate
        names.add(one.out.name)
    assert len(names) == 2
    for other, key in (("long", "epochs"), ("other", "dataset")):
        words = [word for word in data if not word.startswith("epochs")]
        done = kd("mutual", *words, f"student=mlp,{other}", "--config-dir", "mine")
        assert (
            done.code == 2 and f"student={other} sets another {key} than student=mlp" in done.error
        )
        assert done.err.count("\n") == 1 and not (work / "outputs").exists()


MISTAKES = {
    "one student": (["student=cnn"], "mutual needs students, as in student=cnn,mlp"),
    "no student": ([], "or several of one network, as in peers=2"),
    "both": (["student=cnn,mlp", "peers=2"], "(one of the two)"),
    "one peer": (["peers=1"], "peers=1 must be a whole number from 2 to 20"),
    "too many": ([f"student={','.join(['mlp'] * 21)}"], "must name 2 to 20 students"),
    "a teacher": (["peers=2", "teacher=cnn"], "mutual does not use teacher: its students teach"),
    "a given teacher": (["peers=2", "teacher_dir=x"], "mutual does not use teacher_dir"),
    "a teacher's file": (["peers=2", "teacher.checkpoint=x"], "does not use teacher.checkpoint"),
    "a loss": (["peers=2", "loss=hinton"], "mutual does not use loss: its loss is fixed"),
    "a loss of a teacher": (["peers=2", "loss=[ce,at]"], "mutual does not use loss"),
    "alpha": (["peers=2", "alpha=0.5"], "mutual does not use alpha"),
    "temperature": (["peers=2", "temperature=2"], "mutual does not use temperature"),
    "view": (["peers=2", "view=independent", "augment=flip_crop"], "mutual does not use view"),
    "the cache": (["peers=2", "cache.logits=none"], "mutual does not use cache.logits"),
    "unlabelled images": (["peers=2", "dataset.unlabelled=use"], "does not use dataset.unlabelled"),
    "rounds": (["peers=2", "rounds=2"], "mutual does not use rounds"),
    "the same weights": (["peers=2", "student.checkpoint=w.keras"], "start from different weights"),
    "a sweep": (["peers=2", "--multirun"], "type seed=1 for another"),
    "values": (["peers=2", "seed=1,2"], "seed=1,2 is a list of values, and mutual trains one gro"),
    "a sweep's name": (["peers=2", "sweep=x"], "sweep=x says how to sweep: leave it out"),
    "one directory": (["peers=2", "hydra.run.dir=x"], "each student has a directory of its own"),
    "baseline": (["peers=2", "baseline=2"], "baseline=2 must be true or false"),
    "an unknown student": (["student=mlp,nine"], "no option 'nine' in group 'student'"),
    "a key's range": (["peers=2", "batch_size=0"], "batch_size=0 must be at least 1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_before_anything_trains(kd, work, data, name):
    words, said = MISTAKES[name]
    done = kd("mutual", *data, *words)
    assert done.code == 2 and said in done.error and done.out == ""
    assert done.err.count("\n") == 1 and not (work / "outputs").exists()


def test_a_network_of_other_classes_is_one_line(kd, work, data):
    words = ["student=mlp,cnn", "student.network.num_classes=3"]
    done = kd("mutual", *data, *words)
    assert done.code == 2 and "3" in done.error and not (work / "outputs").exists()


TRICKY = (
    "dataset=npz",
    "dataset.path=quarters.npz",
    "student=mlp,mlp",
    "student.network.dropout=0.3",
    "optimizer=adamw",
    "schedule=cosine",
    "early_stopping.patience=2",
    "batch_size=48",
    "epochs=5",
)


def execute_all(*more, session=None):
    runs = [one for one, _ in runs_of(*TRICKY, *more)]
    return runs, execute.execute_together(runs, session or Session(), alone=True)


class Killed(BaseException):
    """As abrupt as a test can be."""


@pytest.fixture
def place(tmp_path, npz, monkeypatch):
    monkeypatch.delenv("KD_CACHE_DIR", raising=False)

    def fresh(name):
        (tmp_path / name).mkdir()
        shutil.copy(npz, tmp_path / name)
        monkeypatch.chdir(tmp_path / name)

    return fresh


@pytest.mark.slow
def test_the_group_stops_when_none_gets_better(place):
    """Each keeps its own best epoch; the one that has stopped getting better goes on teaching."""
    place("here")
    runs, (first, second) = execute_all(
        "early_stopping.patience=1", "epochs=30", "learning_rate=0.1"
    )
    bests = [one["validation"]["best"]["epoch"] for one in (first, second)]
    assert first["epochs_done"] == second["epochs_done"] > max(bests)
    for run, best in zip(runs, bests, strict=True):
        rows = read_rows(run.out / "history.jsonl")
        accuracies = [(-row["validation"]["accuracy"], row["validation"]["nll"]) for row in rows]
        assert best == 1 + accuracies.index(min(accuracies)) and len(rows) == first["epochs_done"]


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("checkpoint.minutes=1e-9",)], ids=["epochs", "steps"])
def test_a_kill_at_any_write_loses_nothing(place, monkeypatch, more):
    monkeypatch.setattr(loop, "CHUNK_SECONDS", 0.0)  # a chunk is a step
    session = Session()
    place("whole")
    disk = Disk(monkeypatch)
    whole, answers = execute_all(*more, session=session)
    assert not any(isinstance(one, Exception) for one in answers)
    expected = [result(run.out) for run in whole]
    writes, real = disk.count, disk.act

    def act(action, *args):
        if disk.count + 1 == disk.refused:
            disk.count, disk.refused = 0, None
            raise Killed
        return real(action, *args)

    disk.act = act
    for killed in range(5, writes + 1, writes // 6):
        place(f"cut{killed}")
        disk.count, disk.refused = 0, killed
        with pytest.raises(Killed):
            execute_all(*more, session=session)
        again, _ = execute_all(*more, session=session)
        assert [result(run.out) for run in again] == expected, f"write {killed} of {writes}"


@pytest.mark.slow
def test_a_disk_that_is_full_ends_all_and_loses_nothing(place, monkeypatch):
    session = Session()
    place("whole")
    disk = Disk(monkeypatch)
    whole, _ = execute_all(session=session)
    expected = [result(run.out) for run in whole]
    writes = disk.count
    for refused in range(7, writes + 1, writes // 3):
        place(f"cut{refused}")
        disk.count, disk.refused = 0, refused
        execute_all(session=session)
        disk.refused = None
        again, answers = execute_all(session=session)
        assert not any(isinstance(one, Exception) for one in answers)
        assert [result(run.out) for run in again] == expected, f"write {refused} of {writes}"


@pytest.mark.slow
def test_one_that_breaks_ends_all(kd, work, data):
    done = kd("mutual", *data, "peers=2", "learning_rate=1e30", "optimizer=sgd")
    assert done.code == 1 and "is not finite" in done.err
    assert not list(work.rglob("metrics.json")) and "Traceback" not in done.err


@pytest.mark.slow
def test_a_finished_one_does_not_train_again_without_the_other(kd, work, data):
    words = ["mutual", *data, "peers=2"]
    assert kd(*words).code == 0
    folders = {one.record["config"]["peers"]["number"]: one.folder
               for one in finished.find([work / "outputs/mutual"]).runs}  # fmt: skip
    before = [read_record(folders[n]) for n in (1, 2)]
    (folders[2] / "metrics.json").unlink()  # its end is in its state
    assert kd(*words).code == 0
    assert read_record(folders[2])["weights_sha256"] == before[1]["weights_sha256"]
    shutil.rmtree(folders[2])
    done = kd(*words)
    assert done.code == 2 and "type rerun=true to train all anew" in done.error
    assert read_record(folders[1]) == before[0] and not folders[2].exists()
