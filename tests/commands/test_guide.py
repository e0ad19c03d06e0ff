"""`kd guide`: the list of the pages, and a page that is made from the code."""

import re

import pytest

from kd_cli.commands import guide
from kd_cli.commands.arguments import arrange
from kd_cli.errors import ConfigError
from kd_cli.runs.record import schema


def shown(capsys, *words):
    assert guide.run(arrange(["guide", *words])) == 0
    return capsys.readouterr().out


def test_every_page_is_listed_once_in_its_group(capsys):
    lines = shown(capsys).splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert sorted(listed) == guide.topics()
    assert [line for line in lines if line in guide.GROUPS] == list(guide.GROUPS)
    assert "This page" not in "\n".join(lines)
    assert all(len(line) <= 160 for line in lines)


@pytest.mark.parametrize("topic", guide.topics())
def test_a_page_begins_with_what_it_answers(topic):
    title, first, *_ = guide._text(topic).split("\n\n")
    assert title.startswith("# ") and first.startswith("This page says ")


def test_metrics_lists_every_key_of_the_record(capsys):
    text = shown(capsys, "metrics")
    rows = re.findall(r"^\| `(\S+)` \| ([^|]+) \| (.+) \|$", text, flags=re.MULTILINE)
    assert [(key, meaning) for key, _, meaning in rows] == [
        (key, meaning) for key, (_, meaning) in schema().items()
    ]
    assert ("git_commit", "str or null", schema()["git_commit"][1]) in rows


def test_an_unknown_page_is_refused():
    with pytest.raises(ConfigError, match="no page 'losess'; did you mean 'losses'"):
        guide.run(arrange(["guide", "losess"]))
