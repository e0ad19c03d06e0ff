"""Every command in the README and in the guide composes; the first ones run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kd_cli.commands import cache, guide, report
from kd_cli.commands.arguments import arrange
from kd_cli.commands.chain import links
from kd_cli.commands.compare import sweeps
from kd_cli.commands.mutual import asked_for
from kd_cli.commands.sweep import expand
from kd_cli.commands.table import COMMANDS as TABLE
from kd_cli.commands.tune import asked_for as tuned
from kd_cli.config.check import check
from kd_cli.config.compose import compose
from kd_cli.config.instantiate import build
from kd_cli.runs.resolvers import register_resolvers
from tests.conftest import only_run

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted(guide.FOLDER.glob("*.md"))]


def commands(page: Path) -> list[str]:
    """The lines that begin with `kd ` in the page's blocks of commands."""
    blocks = re.findall(r"```(?:bash|console)\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("kd ")]


LINES = list(dict.fromkeys(line for page in PAGES for line in commands(page)))
README = set(commands(PAGES[0]))
MARKED = [line if line in README else pytest.param(line, marks=pytest.mark.slow) for line in LINES]


def test_the_readme_is_short_and_has_commands():
    assert len(PAGES[0].read_text().splitlines()) <= 160
    assert len(commands(PAGES[0])) >= 8 and len(LINES) >= 100


def test_every_page_is_linked_from_the_readme():
    text = PAGES[0].read_text()
    for topic in guide.topics():
        assert f"kd_cli/guide/{topic}.md" in text, topic


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)|src=\"([^\"]+)\"", page.read_text()):
        place = next(part for part in target if part)
        if "://" not in place:
            assert (page.parent / place).exists(), f"{page.name}: {place}"


def write_examples(page, folder):
    """The files that the guide's page on losses has you write."""
    names = {
        "python": ("my_losses.py", "my_projector.py"),
        "yaml": ("loss/logit_distance.yaml", "loss/projected.yaml"),
    }
    for language, files in names.items():
        blocks = re.findall(f"```{language}\n(.*?)```", page, flags=re.DOTALL)
        for name, block in zip(files, blocks, strict=True):
            (folder / name).parent.mkdir(exist_ok=True, parents=True)
            (folder / name).write_text(block)


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The files that the pages name."""
    folder = tmp_path_factory.mktemp("example")
    for name in ("my_images/a", "my_images/b", "my_conf"):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.png").touch()
    rows = "text,label\n" + "".join(f"t {n},{'ab'[n % 2]}\n" for n in range(8))
    (folder / "my_reviews").mkdir()
    for name in ("reviews.csv", "my_reviews/train.csv", "my_reviews/test.csv"):
        (folder / name).write_text(rows)
    page = (guide.FOLDER / "losses.md").read_text()
    write_examples(page, folder / "my_conf")
    return folder


@pytest.mark.parametrize("line", MARKED)
def test_every_command_composes(line, example, npz, monkeypatch):
    register_resolvers()
    monkeypatch.chdir(example)
    (example / "my.npz").write_bytes(npz.read_bytes())
    words = shlex.split(line)[1:]
    if words in (["--help"], ["--version"], ["help"]) or words[0] == "-sc":
        return
    request = arrange(words)
    word, overrides = request.command.word, request.overrides
    if word in ("cache", "guide"):
        assert {"cache": cache, "guide": guide}[word].run(request) == 0
        return
    if word == "predict":
        assert len(request.words) > 1
        return
    if word == "report":
        (example / "outputs").mkdir(exist_ok=True)
        (example / "my_runs").mkdir(exist_ok=True)
        assert report.folders_of(request.words)
        return
    if request.config_dir:  # names options that the page only describes
        groups = ("student=", "teacher=", "dataset=", "loss=", "tracker=", "network=", "loss.")
        overrides = [o for o in overrides if not o.startswith(groups)]
    swept = "--multirun" in request.flags or word == "compare"
    asked = [(word, overrides)]
    if word == "compare":
        asked = sweeps(overrides)
    elif word == "chain":
        asked = [(word, link) for link in links(overrides)]
    elif word == "mutual":
        asked = [(word, student) for student in asked_for(overrides).students]
    elif word == "tune":
        found = tuned(overrides, "--compare" in request.flags)
        ends = [[one.override(one.probes()[end]) for one in found.spaces] for end in (0, -1)]
        asked = [("distill", [*found.overrides, *end]) for end in ends]
    for name, typed in asked:
        points = expand(typed)[0] if swept else [typed]
        for point in points[:1] + points[1:][-1:]:  # the first and the last
            config = TABLE[name].config
            assert check(compose(config, point), point).command == config


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


def test_the_loss_of_the_guide(example, monkeypatch):
    """alpha * CE + (1 - alpha) * size * mean squared difference of the logits / T, by NumPy."""
    tf = pytest.importorskip("tensorflow")
    monkeypatch.chdir(example)
    words = ["loss=logit_distance", "alpha=0.3", "temperature=2", "loss.logit_distance.size=0.5"]
    register_resolvers()
    plan = check(compose("distill", words, "my_conf"), words)
    assert plan.loss.logit_distance.alpha == 0.3 and plan.temperature == 2
    student, teacher = np.array([[1.0, 2.0], [0.0, -1.0]]), np.array([[3.0, 2.0], [0.0, 1.0]])
    labels = np.array([0, 1])
    given = [{"logits": tf.constant(one, tf.float32)} for one in (student, teacher)]
    found = build(plan.loss.logit_distance, "loss")(tf.constant(labels), *given)
    cross = np.log(np.exp(student).sum(1)) - student[[0, 1], labels]
    np.testing.assert_allclose(found["hard"], 0.3 * cross, rtol=1e-6)
    hidden = build(plan.loss.logit_distance, "loss")(tf.constant([-1, 1]), *given)["hard"]
    np.testing.assert_allclose(hidden, [0, 0.3 * cross[1]], rtol=1e-6)  # -1: no label
    squares = ((student - teacher) / 2) ** 2
    np.testing.assert_allclose(found["soft"], 0.7 * 0.5 * squares.mean(1), rtol=1e-6)
