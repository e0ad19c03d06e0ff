"""Chains: each link's teacher is the run before; finished links are not trained again."""

from pathlib import Path

import pytest

from kd_cli.commands.chain import links, taught_by
from tests.conftest import read_record


def test_links_as_they_are_typed():
    assert links(["student=a,b", "epochs=3"]) == [
        ["epochs=3", "student=a"],
        ["epochs=3", "student=b"],
    ]
    assert links(["generations=3", "epochs=3"]) == [["epochs=3"]] * 3
    later = taught_by(["teacher=cnn", "teacher.training.epochs=3", "alpha=0.5"], Path("x/y"))
    assert later == ["alpha=0.5", "teacher.checkpoint=x/y"]


def test_a_chain_of_two_and_again(kd, work, small):
    words = ["chain", *small, "student=cnn,mlp"]
    done = kd(*words)
    assert done.code == 0, done.err
    runs = [read_record(path.parent) for path in (work / "outputs/distill").rglob("metrics.json")]
    first, second = (next(r for r in runs if r["network"] == name) for name in ("cnn", "mlp"))
    assert first["teacher"]["name"] == "mlp" and second["teacher"]["name"] == "cnn"
    assert second["teacher"]["weights_sha256"] == first["weights_sha256"]
    (table,) = done.out.split("a chain of 2 students")[1:]
    for name, record in (("link 1 ", first), ("link 2 ", second)):
        (row,) = (line for line in table.splitlines() if line.startswith(name))
        assert f"{100 * record['test']['accuracy']:.2f}" in row
    again = kd(*words)
    assert again.code == 0 and again.err.count("is finished") == 2
    assert len(list((work / "outputs/distill").rglob("metrics.json"))) == 2


MISTAKES = {
    "one student": (["student=cnn"], "chain needs students, from large to small"),
    "both": (["student=cnn,mlp", "generations=2"], "(one of the two)"),
    "one generation": (["generations=1"], "a whole number from 2 to 20"),
    "a sweep": (["generations=2", "--multirun"], "type seed=1 for another"),
    "an unknown student": (["student=mlp,nine"], "no option 'nine' in group 'student'"),
    "a mistake of a key": (["generations=2", "alpha=3"], "alpha=3.0 must be between 0 and 1"),
    "values": (["generations=2", "seed=1,2"], "a list of values, and chain trains one chain"),
    "rerun": (["generations=2", "rerun=true"], "chain reuses finished runs"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_before_anything_trains(kd, work, small, name):
    words, said = MISTAKES[name]
    done = kd("chain", *small, *words)
    assert done.code == 2 and done.err.count("\n") == 1 and said in done.err
    assert not (work / "outputs").exists()
