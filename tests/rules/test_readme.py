"""Every command in the README composes; the first ones run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kd_cli.arguments import arrange
from kd_cli.cli import _compose
from kd_cli.commands import cache, report
from kd_cli.commands.compare import sweeps
from kd_cli.commands.sweep import expand
from kd_cli.config.check import check
from kd_cli.runs.resolvers import register_resolvers
from tests.conftest import only_run

README = (Path(__file__).parent.parent.parent / "README.md").read_text()
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```(?:bash|console)\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("kd ")
]


def test_the_readme_has_commands():
    assert len(COMMANDS) >= 20


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_composes(line, work, npz):
    register_resolvers()
    (work / "my_images").mkdir()
    for name in ("a", "b"):
        (work / "my_images" / name).mkdir()
    npz.rename(work / "my.npz")
    (work / "my_conf").mkdir()
    words = shlex.split(line)[1:]
    if words in (["--help"], ["--version"]) or words[0] == "-sc":
        return
    if words[0] == "cache":
        assert cache.main(words[1:]) == 0
        return
    if words[0] == "report":
        (work / "outputs").mkdir()
        assert report.arrange(words[1:])[1].name == "report"
        return
    command, overrides, flags = arrange(words)
    if "my_conf" in flags:  # names an option that the README only describes
        overrides = [o for o in overrides if not o.startswith("student=")]
    if command == "explain":
        command = "distill"
    asked = [(command, overrides)]
    if command == "compare":
        asked = [(part.command, part.overrides) for part in sweeps(overrides)]
    for config, typed in asked:
        points = expand(typed)[0] if "--multirun" in flags or command == "compare" else [typed]
        for point in points[:1] + points[1:][-1:]:  # the first and the last
            assert check(_compose(config, point, None), point).command == config


@pytest.mark.slow
def test_the_first_run(work):
    """The README's first command, after its installation."""
    done = subprocess.run(
        [sys.executable, "-m", "kd_cli", "distill"], cwd=work, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for word in ("teacher", "distilled student", "not trained yet: kd train-student"):
        assert word in done.stdout
    _, teacher = only_run(work / "outputs" / "teachers")
    _, student = only_run(work / "outputs" / "distill")
    assert teacher["test"]["accuracy"] - student["test"]["accuracy"] > 0.01  # a real gap
    assert "W0000" not in done.stderr and "I0000" not in done.stderr
