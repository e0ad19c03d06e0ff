"""A search's memory: what is proposed, by how many processes, after which interruptions."""

import json
import os

import pytest

from kd_cli.commands.spaces import split
from kd_cli.files import DamagedError

pytest.importorskip("optuna")
from kd_cli.commands.study import Study  # noqa: E402

_, SPACES = split(["alpha=interval(0,1)", "temperature=choice(1,2,4)", "epochs=range(2,9)"], None)


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """No power is cut here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def study(folder, **options):
    folder.mkdir(exist_ok=True)
    settings = {"start": {}, "seed": 0, "maximize": True, **options}
    return Study(folder, "mine", SPACES, **settings)


def value(proposed):
    """Best near alpha 0.3 and temperature 2."""
    distance = abs(proposed["alpha"] - 0.3) + abs(float(proposed["temperature"]) - 2) / 10
    return 1 - distance - abs(proposed["epochs"] - 5) / 100


def end(taken):
    about = {"number": taken.number, "proposed": taken.proposed}
    taken.tell("finished", value(taken.proposed), about)


def test_a_search_goes_to_its_number_of_trials_and_proposes_better_ones(tmp_path):
    one = study(tmp_path / "s")
    while taken := one.take(30):
        end(taken)
    ended = one.ended()
    assert [about["number"] for about in ended] == list(range(1, 31))
    values = [value(about["proposed"]) for about in ended]
    assert sum(values[20:]) / 10 > sum(values[:10]) / 10 + 0.1  # not drawn blindly
    assert one.take(30) is None and one.take(31).number == 31
    assert one.importances()["alpha"] > one.importances()["epochs"]


def test_an_interrupted_search_proposes_what_an_undisturbed_one_does(tmp_path):
    """Each trial in a process of its own; every third is left unfinished once."""
    undisturbed = study(tmp_path / "a")
    while taken := undisturbed.take(15):
        end(taken)
    for turn in range(100):
        one = study(tmp_path / "b")
        taken = one.take(15)
        if taken is None:
            break
        taken.report(1, 0.5)
        if turn % 3 == 0:
            taken.leave()
        else:
            end(taken)
    again = study(tmp_path / "b")
    assert again.ended() == undisturbed.ended() and len(again.ended()) == 15
    assert again.optuna.get_trials(states=(again.optuna.trials[0].state.RUNNING,)) == []


def test_a_trial_that_a_process_works_on_is_not_taken_by_another(tmp_path):
    mine, other = study(tmp_path / "s"), study(tmp_path / "s")
    first = mine.take(9)
    second = other.take(9)
    assert (first.number, second.number) == (1, 2)
    first.leave()  # as the death of its process does
    again = other.take(9)
    assert again.number == 1 and again.proposed == first.proposed
    end(again)
    end(second)
    assert other.take(2) is None and not other.wait()
    assert len(mine.ended()) == 2


def test_the_first_trial_has_the_values_of_the_start(tmp_path):
    one = study(tmp_path / "s", start={"alpha": 0.125, "temperature": "4"})
    first, second = one.take(9), one.take(9)
    assert (first.proposed["alpha"], first.proposed["temperature"]) == (0.125, "4")
    assert second.proposed["alpha"] != 0.125
    other = study(tmp_path / "s", start={"alpha": 0.125})
    assert other.take(9).number == 3


def test_seeds_propose_other_values(tmp_path):
    found = {study(tmp_path / str(s), seed=s).take(1).proposed["alpha"] for s in range(3)}
    assert len(found) == 3


def test_a_trial_is_behind_when_it_is_worse_than_the_median(tmp_path):
    """Of five finished trials with 0.1, 0.2, 0.3, 0.4, 0.5 after epoch 2 the median is 0.3."""
    one = study(tmp_path / "s")
    for number in range(1, 6):
        taken = one.take(9)
        taken.report(1, 0.9)
        taken.report(2, number / 10)
        assert not taken.is_behind()  # fewer than five have finished
        end(taken)
    for last, behind in ((0.29, True), (0.31, False)):
        taken = one.take(9)
        taken.report(2, last)
        assert taken.is_behind() is behind
        taken.tell("pruned" if behind else "finished", None if behind else 0.5, {})


def test_importances_need_ten_finished_trials(tmp_path):
    one = study(tmp_path / "s")
    for number in range(12):
        taken = one.take(99)
        if number < 9:
            end(taken)
        else:
            taken.tell("failed", None, {})
    assert one.importances() == {}
    end(one.take(99))
    assert set(one.importances()) == {"alpha", "temperature", "epochs"}


def test_half_a_line_of_the_journal_is_cut_off(tmp_path):
    """A process was killed while it wrote."""
    one = study(tmp_path / "s")
    end(one.take(9))
    path = tmp_path / "s" / "journal.log"
    whole = path.read_text()
    path.write_text(whole + '{"op_code": 4, "wor')
    again = study(tmp_path / "s")
    assert again.ended() == one.ended()
    end(again.take(9))
    text = path.read_text()
    assert text.startswith(whole) and [json.loads(line) for line in text.splitlines()]
    assert len(study(tmp_path / "s").ended()) == 2


def test_a_damaged_journal_is_one_line(tmp_path):
    end(study(tmp_path / "s").take(9))
    path = tmp_path / "s" / "journal.log"
    first, second, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([first, second[:9] + "\n", *rest]))
    with pytest.raises(DamagedError, match=r"journal.log can't be read .* remove .*/s and type"):
        study(tmp_path / "s")
