"""The spaces of a search: how they are read, which are refused, and what is typed for a value."""

import pytest

from kd_cli.commands.spaces import Space, split
from kd_cli.errors import ConfigError


def space(typed):
    _, (found,) = split([typed], None)
    return found


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("alpha=interval(0.05,0.95)", {"low": 0.05, "high": 0.95}),
        ("temperature=choice(1,2,4)", {"choices": ("1", "2", "4")}),
        ("temperature=choice(1,2,2)", {"choices": ("1", "2")}),
        ("learning_rate=tag(log,interval(1e-4,1e-2))", {"low": 1e-4, "high": 1e-2, "log": True}),
        ("epochs=int(interval(5,20))", {"low": 5, "high": 20, "step": 1, "whole": True}),
        ("epochs=range(5,21,5)", {"low": 5, "high": 20, "step": 5, "whole": True}),
        ("alpha=range(0.1,0.5,0.1)", {"low": 0.1, "high": 0.4, "step": 0.1}),
        ("student.network.units=choice([16],[32,8])", {"choices": ("[16]", "[32,8]")}),
        ("+optimizer.beta_1=interval(0.8,0.9)", {"low": 0.8, "high": 0.9}),
    ],
)
def test_spaces_are_read_with_hydras_grammar(typed, expected):
    assert space(typed) == Space(typed.partition("=")[0], typed, **expected)


def test_of_a_key_that_is_typed_twice_the_last_counts():
    single, spaces = split(["alpha=interval(0,1)", "epochs=3", "alpha=0.5"], None)
    assert single == ["epochs=3", "alpha=0.5"] and spaces == []
    single, spaces = split(["alpha=0.5", "epochs=3", "alpha=interval(0,1)"], None)
    assert single == ["epochs=3"] and [one.key for one in spaces] == ["alpha"]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("alpha=0.1,0.5", "alpha=0.1,0.5 is a list of values, and tune chooses among them only "),
        ("alpha=0.1,0.5", "where you type alpha='choice(0.1,0.5)'"),
        ("student=choice(cnn)", "student=choice(cnn) gives no choice; type student=cnn"),
        ("epochs=range(5,6)", "epochs=range(5,6) gives no choice; a range leaves its end out"),
        ("alpha=interval(0.9,0.1)", "the first end must be below the second"),
        ("alpha=interval(a,b)", "can't read alpha=interval(a,b)"),
        ("alpha=tag(log,interval(0,1))", "with log both ends must be above 0"),
        ("temperature=tag(log,choice(1,2))", "log is of an interval"),
        ("alpha=tag(fine,interval(0,1))", "the only tag is log"),
        ("alpha=shuffle(choice(1,2))", "leave shuffle out"),
        ("student=glob(*)", "name the options, as in student='choice(a,b)'"),
        ("epochs=interval(5,20)", "epochs is a whole number; type epochs='int(interval(5,20))'"),
        ("seed=choice(0,1)", "a search can't choose seed: the best of several seeds is the lucki"),
        ("teacher.training.seed=choice(0,1)", "a search can't choose teacher.training.seed"),
        ("dataset=choice(digits,mnist)", "compared on the same validation images"),
        ("dataset.limit=choice(100,200)", "compared on the same validation images"),
        ("early_stopping.monitor=choice(nll,accuracy)", "type objective=nll"),
        ("device=choice(cpu,gpu)", "it is no setting of the training"),
        ("hydra.verbose=choice(true,false)", "it is no setting of the training"),
    ],
)
def test_mistakes_are_one_line(typed, expected):
    with pytest.raises(ConfigError) as error:
        split([typed], None)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_values_have_few_digits_and_stay_inside():
    alpha = space("alpha=interval(0.12341,0.98769)")
    assert alpha.override(0.5123456) == "alpha=0.5123"
    assert alpha.override(0.12341) == "alpha=0.12341"  # 0.1234 would lie outside
    assert alpha.override(0.98769) == "alpha=0.98769"  # 0.9877 would
    rate = space("learning_rate=tag(log,interval(1e-6,1))")
    assert rate.override(1.23456e-5) == "learning_rate=1.235e-05"
    assert space("alpha=range(0.1,0.5,0.1)").override(0.30000000000000004) == "alpha=0.3"
    assert space("epochs=range(1,9)").override(7) == "epochs=7"
    assert space("+optimizer.beta_1=interval(0.8,0.9)").name == "optimizer.beta_1"


def test_the_proposal_for_a_value():
    """Trial 1 has the settings without a search, where they lie in the space."""
    assert space("alpha=interval(0,1)").proposal(0.1) == 0.1
    assert space("alpha=interval(0.2,1)").proposal(0.1) is None
    assert space("temperature=choice(1,4)").proposal(4.0) == "4"
    assert space("temperature=choice(1,2)").proposal(4.0) is None
    assert space("student=choice(cnn,mlp)").proposal("mlp") == "mlp"
    assert space("optimizer.nesterov=choice(true,false)").proposal(False) == "False"
    assert space("optimizer.weight_decay=choice(0,0.1)").proposal(None) == "0"
    assert space("optimizer.weight_decay=interval(0.1,1)").proposal(None) is None
    assert space("epochs=range(5,21,5)").proposal(10) == 10
    assert space("epochs=range(5,21,5)").proposal(11) is None


def test_both_ends_are_checked_before_a_search():
    assert space("alpha=interval(0,1.5)").probes() == [0, 1.5]
    assert space("temperature=choice(1,2,4)").probes() == ["1", "2", "4"]
