"""Texts in overrides and in printed commands come back, whatever characters they have."""

import json
import shlex
import subprocess

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from kd_cli.commands.arguments import arrange
from kd_cli.config.quoting import command_line, quoted, text_of, understood
from kd_cli.errors import ConfigError
from tests.conftest import plan_of

ODD = [
    "a (1)", "a,b", "alpha=0.1", "josé", "q'uote", 'd"ouble', "both'\"", "c#", "x[1]", "{a: b}",
    "tilde~", "a${b}", "$HOME", "back\\slash", "ends\\", "\\'", "\\${x}", " lead", "trail ", "",
    "123", "2024_01", "1e3", "null", "True", "nan", "new\nline", "%d", "a:b", "a;b", "!x", "*",
]  # fmt: skip


def read(override):
    """The value that Hydra, and then OmegaConf, make of an override."""
    return OmegaConf.create({"x": OverridesParser.create().parse_override(override).value()}).x


@pytest.mark.parametrize("text", ODD)
def test_a_quoted_text_comes_back(text):
    assert read(f"x={quoted(text)}") == text


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=12))
def test_any_quoted_text_comes_back(text):
    assert read(f"x={quoted(text)}") == text


@pytest.mark.parametrize("text", ["outputs/a-b_1.keras", "./x", "../x", "/a/b.c"])
def test_a_plain_path_stays_readable(text):
    assert quoted(text) == text


# What is typed, and the text that it means; None for what is left to Hydra.
TYPED = {
    "dataset.path=ünï/d.npz": "ünï/d.npz",
    "dataset.path=a=b/d.npz": "a=b/d.npz",
    "dataset.path=a (1)/d.npz": "a (1)/d.npz",
    "dataset.path=x[1]/#": "x[1]/#",
    "teacher.checkpoint=f(x).keras": "f(x).keras",
    "sweep=2024_01": "2024_01",
    "sweep=1e3": "1e3",
    "student.name=größe": "größe",
    "outputs='a b'": "a b",
    "outputs=a (1), b/é": "a (1), b/é",
    "tracker.mine.path=[a,b]": None,
    "sweep=null": None,
    "alpha=0.1,0.2": None,
    "student.network.units=[1,2]": None,
    "dataset=glob(*)": None,
}


@pytest.mark.parametrize("override", TYPED)
def test_what_is_typed_is_understood(override):
    key, text = override.split("=")[0], TYPED[override]
    if text is None:
        assert understood(override) == override
    else:
        assert understood(override).startswith(f"{key}=")
        assert read(f"x={understood(override).partition('=')[2]}") == text
        assert text_of(override) == text


def test_home_and_commas(work, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me (1)")
    assert read(f"x={understood('outputs=~/runs').partition('=')[2]}") == "/home/me (1)/runs"
    assert understood("dataset.path=é,b", sweeping=True) == 'dataset.path="é",b'
    assert understood("dataset.path=a,b", sweeping=True) == "dataset.path=a,b"
    assert understood("dataset.path=a,b") == 'dataset.path="a,b"'
    (work / "é,b").touch()
    (work / "x,y").touch()
    assert understood("dataset.path=é,b", sweeping=True) == 'dataset.path="é,b"'
    assert understood("dataset.path=x,y", sweeping=True) == 'dataset.path="x,y"'


@pytest.mark.parametrize("override", ["=5", "~", "däta=3", "a b=3", "+="])
def test_what_is_no_key_is_refused(override):
    with pytest.raises(ConfigError, match="expected key=value"):
        understood(override)


def test_a_printed_command_is_read_by_a_shell_as_it_was_meant():
    overrides = [f"dataset.path={quoted(text)}" for text in ODD]
    line = command_line("train-student", overrides, "my 'conf' (1)")
    script = 'kd() { python3 -c "import sys, json; print(json.dumps(sys.argv[1:]))" "$@"; }; '
    words = subprocess.check_output(["sh", "-c", script + line], text=True)
    words = json.loads(words)
    assert words == shlex.split(line)[1:]
    assert words == ["train-student", "--config-dir", "my 'conf' (1)", *overrides]
    assert arrange(words).overrides == overrides and arrange(words).config_dir == "my 'conf' (1)"


def test_a_given_file_in_an_odd_folder(work, monkeypatch):
    for name in ("a (1), b=é", "x[1]'\"", "$x~#"):
        (work / name).mkdir()
        (work / name / "t.keras").touch()
        monkeypatch.chdir(work / name)
        plan = plan_of("distill", "teacher.checkpoint=t.keras", "teacher.input.scale=1")
        assert plan.teacher.checkpoint == str((work / name / "t.keras").resolve())


def test_a_path_that_looks_like_a_reference_is_refused(work):
    (work / "${x}.npz").touch()
    with pytest.raises(ConfigError, match="another name"):
        understood("dataset.path=${x}.npz")


def test_what_evaluate_measures_may_look_like_anything(work):
    for name in ("a=b", "~x", "+y=1", "l'été"):
        (work / name).mkdir()
        assert plan_of("evaluate", name).what == name


def test_of_a_key_that_is_typed_twice_the_last_counts_and_the_other_is_told(capsys):
    words = ["distill", "epochs=1", "loss=hard", "epochs=2"]
    arrange(words)
    told = "kd: warning: epochs=1 does not count, because epochs=2 is typed after it"
    assert capsys.readouterr().err == f"{told}\n"
    arrange(["distill", "~epochs", "+epochs=2", "loss=hard", "loss.alpha=1"])
    assert capsys.readouterr().err == ""
