"""Mistakes of the user: one line that names what was received and what to type, exit code 2,
nothing left behind. Failures of a run: exit code 1, with the traceback in its log."""

import errno
import json
import os

import keras
import numpy as np
import pytest

from kd_cli import files
from tests.conftest import assert_refused, only_run

# What is typed, and what the one line must say.
MISTAKES = {
    "unknown command": (["distil"], ["'distil'", "did you mean 'distill'"]),
    "two commands": (["distill", "train-teacher"], ["'train-teacher'", "one command"]),
    "unknown flag": (["--mutirun"], ["'--mutirun'", "did you mean '--multirun'"]),
    "a flag twice": (["--cfg", "job", "-c", "all"], ["--cfg is typed twice"]),
    "two flags": (["-m", "--run"], ["--multirun and --run exclude each other"]),
    "resolve alone": (["distill", "--resolve"], ["--resolve", "add --cfg job"]),
    "package alone": (["distill", "-p", "loss"], ["--package", "add --cfg job"]),
    "info": (["distill", "--info=foo"], ["--info foo: expected all, config"]),
    "a flag with a value": (["-m=1"], ["--multirun takes no value"]),
    "a flag before another kind of command": (["-m", "cache"], ["kd cache --help"]),
    "a mode": (["distill", "hydra.mode=MULTIRUN"], ["hydra.mode=MULTIRUN", "type --multirun"]),
    "parameters of a sweeper": (
        ["-m", 'hydra.sweeper.params={seed: "0,1"}'],
        ["hydra.sweeper.params", "--multirun seed=0,1"],
    ),
    "a sweep's name": (["distill", "sweep=x"], ["sweep=x says how to sweep: add --multirun"]),
    "a sweep's launcher": (["distill", "hydra/launcher=joint"], ["add --multirun"]),
    "two folders of a sweep": (["-m", "sweep=a,b"], ["sweep names the one folder"]),
    "no folder of a comparison": (["compare", "sweep=a,b"], ["sweep names the one folder"]),
    "two options": (["distill", "student=mlp,cnn"], ["add --multirun to sweep over them"]),
    "null taken away": (["distill", "~optimizer.clipnorm"], ["~optimizer.clipnorm: it is null"]),
    "an empty folder": (["distill", "--config-dir", ""], ["--config-dir needs a value"]),
    "no batches": (["-m", "hydra.sweeper.max_batch_size=0"], ["max_batch_size=0", "at least 1"]),
    "no option": (["-m", "dataset=glob(zz*)"], ["glob(zz*) gives no value"]),
    "an option once more": (["distill", "+optimizer=adam"], ["optimizer=OPTION without the +"]),
    "an open bracket": (
        ["distill", "student.network.units=[16"],
        ["can't read student.network.units=[16", "'student.network.units=\"[16\"'"],
    ),
    "a comma": (["distill", "teacher.checkpoint=x,y"], ["teacher.checkpoint=x,y is not a file"]),
    "an odd number": (["distill", "alpha=~0.3"], ["alpha=~0.3 must be a number"]),
    "an odd path": (
        ["distill", "dataset=npz", "dataset.path=ü (1)/#.npz"],
        ["dataset.path=ü (1)/#.npz is not a file"],
    ),
    "nothing near": (["distill", "optimizer.foo=3"], ["'optimizer.foo'; if", "+optimizer.foo=3 "]),
    "near, and of no use": (["train-student", "alpa=3"], ["unknown key 'alpa' (all keys"]),
    "flag without value": (["--config-dir"], ["--config-dir needs a value"]),
    "unknown key": (["distill", "alpa=1"], ["'alpa'", "did you mean 'alpha'"]),
    "unknown nested key": (
        ["distill", "student.network.unit=[3]"],
        ["'student.network.unit'", "did you mean 'student.network.units'"],
    ),
    "a key of a function": (
        ["distill", "schedule.warmup=3"],
        ["'schedule.warmup'", "function takes it, type +schedule.warmup=3"],
    ),
    "a network where students are chosen": (
        ["distill", "student/network=cnn"],
        ["'student/network'", "type network@student.network=OPTION"],
    ),
    "a network of nobody": (
        ["distill", "network=cnn"],
        ["network@student.network=OPTION or network@teacher.network=OPTION"],
    ),
    "a network without its widths": (
        ["distill", "network@student.network=cnn"],
        ["student.network.filters is missing", "type student.network.filters=..."],
    ),
    "useless network": (
        ["train-teacher", "network@student.network=cnn", "student.network=x"],
        ["does not use student.network"],
    ),
    "a set without a name": (["distill", "dataset=tfds"], ["type dataset.name=..."]),
    "added key": (["distill", "+typo=1"], ["unknown key 'typo'"]),
    "unknown option": (
        ["distill", "dataset=minst"],
        ["no option 'minst' in group 'dataset'", "did you mean 'mnist'", "available: cifar10"],
    ),
    "text for a number": (["distill", "alpha=abc"], ["alpha=abc must be a number"]),
    "half an epoch": (["distill", "epochs=1.5"], ["epochs=1.5 must be a whole number"]),
    "number for a switch": (["distill", "rerun=maybe"], ["rerun=maybe must be true or false"]),
    "no value": (["distill", "alpha=???"], ["alpha is missing"]),
    "missing path": (["distill", "dataset=npz"], ["dataset.path is missing", "dataset.path=..."]),
    "alpha out of range": (["distill", "alpha=1.5"], ["alpha=1.5", "between 0 and 1"]),
    "temperature": (["distill", "temperature=0"], ["temperature=0", "above 0"]),
    "epochs": (["distill", "epochs=0"], ["epochs=0", "at least 1"]),
    "batch size": (["distill", "batch_size=0"], ["batch_size=0", "at least 1"]),
    "learning rate": (["distill", "learning_rate=-1"], ["learning_rate=-1", "above 0"]),
    "fraction": (
        ["distill", "dataset.validation_fraction=1"],
        ["dataset.validation_fraction=1", "below 1"],
    ),
    "labelled fraction": (
        ["distill", "dataset.labelled_fraction=0"],
        ["dataset.labelled_fraction=0", "above 0 and at most 1"],
    ),
    "smoothing": (["train-student", "label_smoothing=1"], ["label_smoothing=1", "below 1"]),
    "patience": (["distill", "early_stopping.patience=0"], ["patience=0", "null"]),
    "monitor": (["distill", "early_stopping.monitor=loss"], ["monitor=loss", "accuracy or nll"]),
    "precision": (["distill", "precision=float8"], ["precision=float8", "mixed_bfloat16"]),
    "device": (["distill", "device=tpu"], ["device=tpu", "auto, cpu, gpu"]),
    "shape": (["distill", "dataset.image_shape=3"], ["image_shape=3", "[32,32,3]"]),
    "channels": (
        ["distill", "dataset.image_shape=[8,8,2]"],
        ["[8, 8, 2]", "but dataset.image_shape=[8, 8, 2]"],
    ),
    "useless alpha": (
        ["train-student", "alpha=0.3"],
        ["does not use alpha", "without a teacher; remove alpha=0.3", "kd distill alpha=0.3"],
    ),
    "useless student": (["train-teacher", "student=cnn"], ["does not use student"]),
    "useless smoothing": (["distill", "label_smoothing=0.1"], ["does not use label_smoothing"]),
    "loss without temperature": (
        ["distill", "loss=hard", "temperature=3"],
        ["does not use temperature", "loss=hard does not use it"],
    ),
    "a loss's key below the loss": (
        ["distill", "loss.hinton.alpha=3"],
        ["loss.hinton.alpha=3", "loss=hinton takes alpha from the top level", "type alpha=3"],
    ),
    "a loss's switch below the loss": (
        ["distill", "loss=function_matching", "loss.function_matching.t_squared=true"],
        ["loss=function_matching takes t_squared", "type t_squared=true"],
    ),
    "a size that nothing makes": (
        ["distill", "augment.size=4"],
        ["augment.size=4", "no augmentation step resizes", "augment=inception"],
    ),
    "an unknown option in a list": (
        ["distill", "tracker=[tensorbord]"],
        ["'tensorbord' in group 'tracker'", "did you mean 'tensorboard'", "none, tensorboard"],
    ),
    "command as a key": (["distill", "command=train-student"], ["the command is a word"]),
    "list without multirun": (
        ["distill", "alpha=0.1,0.2"],
        ["alpha=0.1,0.2 is a list", "add --multirun"],
    ),
    "warm-up as long as the training": (
        ["distill", "dataset=digits", "schedule=warmup_cosine", "schedule.warmup_epochs=40"],
        ["schedule.warmup_epochs=40", "below epochs=40"],
    ),
    "warm-up of as many steps as the training": (
        ["distill", "schedule=warmup_cosine", "schedule.warmup_steps=1992", "steps=1992"],
        ["schedule.warmup_steps=1992", "below steps=1992"],
    ),
    "warm-up of more steps than the epochs have": (
        [
            "train-student",
            "dataset=digits",
            "schedule=warmup_cosine",
            "schedule.warmup_steps=1500",
            "epochs=30",
        ],
        ["warm-up of 1500 steps", "below the training's 1170 steps"],  # 39 batches of 32
    ),
    "negative weight decay": (
        ["train-student", "optimizer=adamw", "optimizer.weight_decay=-1"],
        ["optimizer.weight_decay=-1", "at least 0"],
    ),
    "weight decay of a whole weight": (
        [
            "train-student",
            "optimizer=adamw",
            "optimizer.weight_decay=1",
            "optimizer.decoupled=true",
        ],
        ["optimizer.weight_decay=1", "below 1"],
    ),
    "missing file": (
        ["distill", "dataset=npz", "dataset.path=no.npz"],
        ["dataset.path=no.npz is not a file"],
    ),
    "missing folder": (
        ["distill", "dataset=image_folder", "dataset.path=no"],
        ["dataset.path=no is not a folder"],
    ),
    "empty word": (["distill", ""], ["'' is neither key=value nor a flag"]),
    "no student": (["distill", "student=null"], ["group override must be"]),
    "no loss": (["distill", "~loss"], ["distill needs a loss", "loss=OPTION"]),
    "no student option": (["distill", "~student"], ["distill needs a student"]),
    "no dataset": (["distill", "~dataset"], ["distill needs a dataset"]),
    "no function": (["distill", "~loss.hinton._target_"], ["loss.hinton must name its function"]),
    "no shape": (["train-student", "~dataset.num_classes"], ["dataset.num_classes"]),
    "no name": (["train-student", "~dataset.name"], ["dataset.name is missing"]),
    "no source": (["distill", "dataset.source=null"], ["dataset.source._target_=..."]),
    "no network": (["distill", "student.network=null"], ["student.network._target_=..."]),
    "no value for alpha": (["distill", "alpha=null"], ["alpha=null", "loss=hinton"]),
    "no value for epochs": (["distill", "epochs=null"], ["epochs=null", "needs a value"]),
    "another folder to work in": (["distill", "hydra.job.chdir=true"], ["hydra.job.chdir=true"]),
    "another primary config": (["distill", "--config-name=x"], ["--config-name", "--config-dir"]),
    "a key of self-train": (["distill", "rounds=2"], ["belongs to self-train"]),
    "checkpoint for a teacher to be": (
        ["train-teacher", "teacher.checkpoint=x"],
        ["does not use teacher.checkpoint"],
    ),
    "optimizer's own rate": (
        ["distill", "optimizer.learning_rate=0.5"],
        ["unknown key 'optimizer.learning_rate'", "did you mean 'learning_rate'"],
    ),
    "patience without validation": (
        ["distill", "early_stopping.patience=2", "dataset.validation_fraction=0"],
        ["nothing to watch"],
    ),
    "no teacher file": (["distill", "teacher.checkpoint=no.keras"], ["no.keras is not a file"]),
    "no student file": (
        ["train-student", "student.checkpoint=no.keras"],
        ["student.checkpoint=no.keras is not a file"],
    ),
    "missing teacher": (
        ["distill", "teacher.train_if_missing=false"],
        ["no finished teacher in outputs/teachers/digits-cnn-", "train it with: kd train-teacher"],
    ),
    "missing teacher of a smoke run": (
        ["distill", "debug=smoke", "teacher.train_if_missing=false"],
        ["outputs/debug/teachers/", "train it with: kd train-teacher debug=smoke"],
    ),
    "a key taken away": (["distill", "~epochs"], ["~epochs: distill needs this key"]),
    "reference to nothing": (["distill", "alpha=${nope}"], ["nope"]),
    "no folder for outputs": (["train-student", "outputs="], ["outputs= must be a folder"]),
    "no folder for the cache": (["distill", "cache_dir="], ["cache_dir= must be a folder"]),
    "no folder for a run": (["distill", "hydra.run.dir="], ["hydra.run.dir= is empty"]),
    "no folder for a point": (
        ["--multirun", "seed=0,1", "hydra.sweep.subdir="],
        ["hydra.sweep.subdir= is empty"],
    ),
    "no points for the launcher": (
        ["-m", "alpha=0.1,0.2", "hydra/launcher=joint", "hydra.launcher.max_points=2.5"],
        ["hydra.launcher.max_points=2.5 must be a whole number, at least 1"],
    ),
    "a logging of no version": (
        ["train-student", "hydra.job_logging.version=7"],
        ["Hydra can't do this"],
    ),
    "a key of Hydra that is none": (
        ["distill", "+hydra.lancher=joint"],
        ["nothing uses the key hydra.lancher"],
    ),
    "a page for help": (["help", "distill"], ["type: kd distill --help"]),
    "a report to two folders": (["report", "x", "--out", "a", "--out", "b"], ["typed twice"]),
    "a report of nothing": (["report", ""], ["names no folder"]),
    "two caches": (["cache", "list", "outputs=a", "outputs=b"], ["outputs is typed twice"]),
    "a cache in the root": (["cache", "prune", "outputs=", "all=true"], ["outputs= needs a value"]),
    "completion of nothing": (["-sc", "foo=bar"], ["expected one of install, uninstall, query"]),
    "completion by hand": (["-sc", "query=bash"], ["type: kd -sc install=bash"]),
    "an unknown key of evaluate": (
        ["evaluate", "x", "splt=test"],
        ["unknown key 'splt'", "kd evaluate --help"],
    ),
    "a place for an evaluation": (
        ["evaluate", "x", "hydra.run.dir=e"],
        ["evaluate writes into the run's folder"],
    ),
    "interval": (
        ["--multirun", "alpha=interval(0,1)"],
        ["alpha=interval(0,1) is a range", "alpha=a,b,c"],
    ),
    "what to show": (["distill", "--cfg", "foo"], ["expected job, hydra or all"]),
    "config dir": (["distill", "--config-dir", "no"], ["--config-dir no is not a folder"]),
    "a bad point of a sweep": (["--multirun", "alpha=0.1,0.2,7"], ["alpha=7", "between 0 and 1"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(kd, work, name):
    words, expected = MISTAKES[name]
    assert_refused(kd, work, words, *expected)


# The same, when only data or networks can tell: these follow overrides for a small run.
LATE_MISTAKES = {
    "class mismatch": (["distill", "dataset.num_classes=3"], ["run from 0 to 3", "num_classes=3"]),
    "shape mismatch": (["distill", "dataset.image_shape=[5,5,1]"], ["[6, 6, 1]", "[5, 5, 1]"]),
    "softmax head": (
        ["train-student", "student=mobilenet_v3_small", "student.network.classes=4",
         "student.network.input_shape=[32,32,3]", "dataset.image_shape=[32,32,3]",
         "student.network.classifier_activation=softmax"],
        ["ends in a softmax", "classifier_activation: null"],
    ),
    "unknown target": (
        ["train-student", "student.network._target_=kd_cli.networks.mpl"],
        ["student.network", "kd_cli.networks.mpl"],
    ),
    "unknown argument": (
        ["train-student", "+student.network.depth=3"],
        ["student.network", "'depth'"],
    ),
    "arguments of another network": (
        ["train-student", "student=cnn", "network@student.network=mlp"],
        ["kd_cli.networks.mlp takes no 'filters', 'pool'; it takes image_shape, num_classes, units",
         "~student.network.filters ~student.network.pool"],
    ),
    "schedule argument": (["train-student", "+schedule.floor=3"], ["takes no 'floor'"]),
    "the optimizer's own rate": (
        ["train-student", "+optimizer.learning_rate=0.5"],
        ["optimizer.learning_rate: kd gives keras.optimizers.Adam this argument itself"],
    ),
    "optimizer argument": (["train-student", "+optimizer.beta_9=0.5"], ["'beta_9'"]),
    "idle optimizer argument": (
        ["train-student", "+optimizer.use_ema=true"],
        ["optimizer.use_ema=True changes nothing", "type ema=0.999"],
    ),
    "GPU that is not there": (["train-student", "device=gpu:7"], ["device=gpu:7", "device=cpu"]),
    "warm-up in steps": (
        ["train-student", "schedule=warmup_cosine", "schedule.warmup_steps=999"],
        ["warm-up of 999 steps", "6 steps"],
    ),
    "bad teacher network": (
        ["distill", "teacher.network._target_=kd_cli.networks.nope"],
        ["teacher.network", "kd_cli.networks.nope"],
    ),
    "limit too small": (["train-student", "dataset.limit=1"], ["dataset.limit=1", "raise one"]),
}  # fmt: skip


@pytest.mark.parametrize("name", LATE_MISTAKES)
def test_a_late_mistake_is_one_line_and_leaves_nothing(kd, work, small, npz, name):
    words, expected = LATE_MISTAKES[name]
    if name == "softmax head":
        images = np.zeros((20, 32, 32, 3), np.uint8)
        labels = np.arange(20) % 4
        np.savez(npz, x_train=images, y_train=labels, x_test=images, y_test=labels)
    teacher = [w for w in small if words[0] == "distill" or "teacher" not in w.split("=")[0]]
    done = kd(words[0], *teacher, *words[1:])
    assert done.code == 2
    for text in expected:
        assert text in done.error
    assert [p.name for p in work.iterdir()] == [npz.name]


def test_a_lambda_layer_is_not_executed(kd, work, small):
    inputs = keras.Input((6, 6, 1))
    x = keras.layers.Lambda(lambda t: t * 2)(inputs)
    outputs = keras.layers.Dense(4)(keras.layers.Flatten()(x))
    keras.Model(inputs, outputs).save(work / "lambda.keras")
    done = kd("distill", *small[:2], "teacher.checkpoint=lambda.keras")
    assert done.code == 2 and "Lambda layer" in done.error
    assert not (work / "outputs").exists()


def test_a_pickle_is_not_executed(kd, work, npz):
    objects = np.array([{"a": 1}] * 4, dtype=object)
    labels = np.arange(4)
    np.savez(npz, x_train=objects, y_train=labels, x_test=objects, y_test=labels)
    done = kd("distill", "dataset=npz", f"dataset.path={npz}", "dataset.image_shape=[1,1,1]")
    assert done.code == 2 and "Python objects" in done.error


def test_foreign_files_in_the_run_directory(kd, work, small):
    assert kd("train-student", *small[:2], "epochs=2").code == 0
    run, _ = only_run(work / "outputs")
    (run / "metrics.json").unlink()
    (run / "thesis.tex").write_text("mine")
    done = kd("train-student", *small[:2], "epochs=2")
    assert done.code == 2 and "thesis.tex" in done.error
    assert (run / "thesis.tex").read_text() == "mine"


def test_a_file_where_the_output_directory_should_be(kd, work, small):
    (work / "outputs").write_text("a file")
    done = kd("train-student", *small[:2], "epochs=1")
    assert done.code == 2 and "outputs is a file" in done.error
    assert (work / "outputs").read_text() == "a file"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "victim"),
    [
        (errno.ENOSPC, "metrics.json"),
        (errno.EROFS, "last.npz"),
        pytest.param(errno.ENOSPC, "model.keras", marks=pytest.mark.slow),
        pytest.param(errno.EROFS, "predictions.npz", marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_takes_no_more(kd, work, small, monkeypatch, number, victim):
    """The write of one file fails: one line, exit 1, and the run continues once there is room."""
    words = ["train-student", *small[:2], "epochs=2"]
    genuine = os.replace

    def replace(source, target):
        if os.path.basename(target) == victim:
            raise OSError(number, os.strerror(number), str(target))
        genuine(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    done = kd(*words)
    assert done.code == 1
    assert os.strerror(number) in done.err and "Traceback" not in done.err
    (run,) = (work / "outputs" / "train-student" / "npz").iterdir()
    assert not (run / "metrics.json").exists()
    assert [p for p in run.rglob(".tmp-*")] == []
    monkeypatch.setattr(files.os, "replace", genuine)
    assert kd(*words).code == 0
    assert (run / "metrics.json").exists() and not (run / "error.json").exists()


def test_a_loss_that_is_not_finite_names_epoch_step_and_term(kd, work, small):
    done = kd("train-student", *small[:2], "learning_rate=1e30", "optimizer=sgd")
    assert done.code == 1
    (line,) = [text for text in done.err.splitlines() if text.startswith("kd: failed")]
    assert "'hard'" in line and "epoch 1, step 2" in line and "kd.log" in line
    (run,) = (work / "outputs" / "train-student" / "npz").iterdir()
    assert "NonFiniteError" in (run / "kd.log").read_text()
    error = json.loads((run / "error.json").read_text())
    assert error["error"] == "NonFiniteError"
    assert not (run / "metrics.json").exists()


def test_full_error_shows_the_traceback(kd, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    done = kd("distill", "alpha=7")
    assert done.code == 2 and "Traceback" in done.err
