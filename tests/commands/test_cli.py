"""What a user types: the word, flags in any position, help, version, completion, quick starts."""

import subprocess
import sys

import pytest

from kd_cli import __version__
from kd_cli.commands import execute
from tests.conftest import only_run


def test_page_teaches_commands_groups_and_examples(kd):
    for words in ((), ("--help",), ("-h",)):
        page = kd(*words)
        assert page.code == 0
        for word in ("train-teacher", "train-student", "distill", "fashion_mnist", "hinton"):
            assert word in page.out
        assert page.out.count("\n  kd ") >= 3


def test_version(kd):
    assert kd("--version").out == f"kd {__version__}\n"
    assert kd("distill", "--version").out == f"kd {__version__}\n"


def test_help_of_a_command_lists_its_keys(kd):
    shown = kd("distill", "--help")
    assert shown.code == 0
    for text in (
        "alpha=0.1 ", "weight of the hard labels", "(number or null)",
        "loss.hinton._target_=kd_cli.distillation.hinton", "[hinton]", "teacher.training.epochs=40",
        "optimizer.amsgrad=false", "init_seed=0",
    ):  # fmt: skip
        assert text in shown.out, text
    assert "rounds" not in shown.out  # it belongs to self-train
    assert "\n  tracker     mlflow none tensorboard wandb\n" in shown.out
    chosen = kd("train-teacher", "tracker=[tensorboard]", "--help").out
    assert "\n  tracker     mlflow none [tensorboard] wandb\n" in chosen


@pytest.mark.parametrize(
    "words",
    [
        ("distill", "alpha=0.3", "--cfg", "job"),
        ("distill", "--cfg", "job", "alpha=0.3"),
        ("--cfg", "job", "distill", "alpha=0.3"),
        ("--cfg=job", "alpha=0.3"),
        ("distill", "seed=1", "--cfg", "job", "alpha=0.3"),
    ],
)
def test_flags_stand_anywhere(kd, words):
    shown = kd(*words)
    assert shown.code == 0, shown.err
    assert "alpha: 0.3" in shown.out and "command: distill" in shown.out


def test_cfg_resolve_and_info(kd):
    assert "learning_rate: 0.5" in kd("distill", "learning_rate=0.5", "--cfg", "job").out
    resolved = kd("train-teacher", "teacher.training.epochs=7", "--cfg", "job", "--resolve")
    assert "\n    epochs: 7\n" in resolved.out
    assert "main" in kd("--info", "searchpath").out
    assert "loss/hinton" in kd("distill", "--info", "defaults").out


@pytest.mark.slow
def test_no_word_means_distill_and_the_flag_may_come_first(kd, small):
    done = kd("--multirun", "alpha=0.2,0.7", *small)
    assert done.code == 0, done.err
    assert done.out.count("\n0.") == 2


def test_completion_of_words_groups_and_keys(kd, monkeypatch):
    def complete(line):
        monkeypatch.setenv("COMP_LINE", line)
        return kd("-sc", "query=bash").out.split()

    assert complete("kd dis") == ["distill"]
    assert complete("kd distill dataset=ci") == ["dataset=cifar10", "dataset=cifar100"]
    assert complete("kd train-student optimizer=ad") == ["optimizer=adam", "optimizer=adamw"]
    assert "train-teacher" in complete("kd ")
    assert "complete -o nospace" in kd("-sc", "install=bash").out


def test_completion_of_words_of_other_commands_and_without_helpers(kd, monkeypatch, work):
    def complete(line, *flags):
        monkeypatch.setenv("COMP_LINE", line)
        return kd(*flags, "-sc", "query=bash").out.split()

    assert complete("kd cache ") == ["list", "verify", "prune"]
    assert complete("kd cache verify r") == ["rows="]
    assert complete("kd guide lo") == ["losses"]
    (work / "mine" / "student").mkdir(parents=True)
    for name in ("_helper", "own"):
        (work / "mine" / "student" / f"{name}.yaml").write_text("name: x\n")
    assert complete("kd distill student=o", "--config-dir", "mine") == ["student=own"]
    assert "student=_helper" not in complete("kd distill student=", "--config-dir", "mine")
    assert complete("kd distill loss.hinton._t") == ["loss.hinton._target_="]


def test_config_dir_adds_an_option_and_a_function(kd, work, small):
    (work / "mine" / "student").mkdir(parents=True)
    (work / "mine" / "my_networks.py").write_text(
        "import keras\n"
        "def wide(image_shape, num_classes, width):\n"
        "    inputs = keras.Input(image_shape)\n"
        "    x = keras.layers.Flatten()(inputs)\n"
        "    x = keras.layers.Dense(width, activation='relu')(x)\n"
        "    return keras.Model(inputs, keras.layers.Dense(num_classes)(x))\n"
    )
    (work / "mine" / "student" / "wide.yaml").write_text(
        "name: wide\ncheckpoint: null\ninput: {size: null, scale: 0.004, offset: 0.0}\n"
        "network:\n  _target_: my_networks.wide\n  width: 9\n"
        "  image_shape: ${dataset.image_shape}\n  num_classes: ${dataset.num_classes}\n"
    )
    done = kd("--config-dir", "mine", "train-student", "student=wide", *small[:2], "epochs=1")
    assert done.code == 0, done.err
    _, metrics = only_run(work / "outputs" / "train-student")
    assert metrics["network"] == "wide"
    assert metrics["parameters"] == 36 * 9 + 9 + 9 * 4 + 4


WITHOUT_TENSORFLOW = [
    [],
    ["--help"],
    ["distill", "--help"],
    ["distill", "--cfg", "job"],
    ["--info", "searchpath"],
    ["distill", "alpa=1"],
    ["distill", "alpha=2"],
    ["distill", "dataset=minst"],
    ["--multirun", "alpha=0.1,2"],
    ["train-student", "temperature=3"],
    ["distill", "dataset=npz", "dataset.path=no.npz"],
]


def test_help_and_configuration_errors_never_import_tensorflow(work):
    script = (
        "import sys\n"
        "from kd_cli.cli import main\n"
        f"for words in {WITHOUT_TENSORFLOW!r}:\n"
        "    main(words)\n"
        "    assert 'tensorflow' not in sys.modules, words\n"
        "    assert 'keras' not in sys.modules, words\n"
        "print('none did')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=work)
    assert done.stdout.endswith("none did\n"), done.stderr
    assert list(work.iterdir()) == []


def test_help_imports_neither_hydra_nor_numpy(work):
    script = (
        "import sys\n"
        "from kd_cli.cli import main\n"
        "main(['--help'])\n"
        "print([m for m in ('hydra', 'omegaconf', 'numpy', 'rich') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=work)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr


def test_an_interrupt_that_became_another_error_is_an_interrupt(kd, small, monkeypatch):
    """C++ code, such as that which TensorFlow's import runs, raises an error of its own."""

    def interrupted(*_):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    monkeypatch.setattr(execute, "load_dataset", interrupted)
    done = kd("train-student", *small[:2], "epochs=1")
    assert done.code == 130 and "interrupted; the same command continues" in done.err
