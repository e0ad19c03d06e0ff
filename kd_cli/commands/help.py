"""The page of `kd --help`: commands, groups with their options, examples. Imports nothing heavy."""

from __future__ import annotations

from kd_cli.config.compose import conf_dir

COMMANDS = ("train-teacher", "train-student", "distill", "self-train")
COMPOSED = (*COMMANDS, "evaluate")  # each has its primary configuration
# They take the overrides of distill.
AS_DISTILL = {"compare": "and seeds=5", "explain": "it trains nothing"}
APART = ("report", "cache")  # they have arguments of their own
WORDS = (*COMPOSED, *AS_DISTILL, *APART)
GROUPS = (
    "dataset",
    "teacher",
    "student",
    "loss",
    "schedule",
    "optimizer",
    "augment",
    "tracker",
    "experiment",
    "debug",
)


def page() -> str:
    """The help page, with the groups and options that the configuration folder holds."""
    conf = conf_dir()
    groups = "\n".join(
        _wrapped(f"  {group:<11}", sorted(p.stem for p in (conf / group).glob("[!_]*.yaml")))
        for group in GROUPS
    )
    return f"""\
kd trains a teacher, trains a small student from scratch, distils the teacher into the student,
and tells whether distilling was worth it.

usage: kd [COMMAND] [key=value ...] [flags]

commands (none: distill)
  train-teacher   train the teacher and keep it
  train-student   train the student without a teacher: the baseline
  distill         distil the teacher into the student; trains the teacher when it is missing
  compare         both students with the seeds 0..4 (seeds=N), paired, and a verdict in words
  self-train      train the student on its own labels of the unlabelled images, round after round
  explain         what kd distill would do with the same overrides: loss, schedule, data path,
                  each term's share of the gradient; trains nothing
  evaluate        a finished run's or a .keras file's quality, size, FLOPs and latency
  cache           list, verify or prune the teachers' outputs that are kept (kd cache list)
  report          tables, verdicts and figures of the runs below a folder (kd report outputs)

groups, chosen with group=option
{groups}

keys
  alpha=0.1         weight of the hard labels; 1 - alpha weighs the teacher
  temperature=4     softens both networks' outputs before they are compared
  epochs=20  batch_size=64  learning_rate=0.001  seed=0  steps=null
  teacher.checkpoint=FILE.keras   a teacher of your own (or the directory of a SavedModel)
  teacher.weights=FILE.npz        published weights for teacher=bit_resnet101x3
  dataset.limit=512               a smoke run on a few images
  early_stopping.patience=5  precision=mixed_bfloat16  device=cpu  rerun=true  data_dir=FOLDER
  hydra/launcher=joint            sweep points that share data and teacher train together
  augment=flip_crop               random crops; view=consistent, independent, fixed_teacher
  cache.logits=float16            half the disk (none: ask the teacher at every step)
  rounds=3  pseudo.labels=soft  pseudo.threshold=0.3   self-train dataset.labelled_fraction=0.1

examples
  kd distill                                             a first result in a minute, no download
  kd distill dataset=cifar10 teacher=cnn student=cnn_small schedule=cosine epochs=20
  kd --multirun alpha=0.1,0.5,0.9 temperature=1,4,10     a sweep, with a table at its end
  kd evaluate outputs/latest                             calibration, fidelity and cost of a run
  kd evaluate my.keras dataset=cifar10                   the same of any .keras file

flags
  --multirun        sweep over comma-separated values    --cfg job --resolve  show the configuration
  --config-dir DIR  add your own YAML and functions       --version, --help
  kd distill --help lists every key with its value; completion: eval "$(kd -sc install=bash)"
"""


def _wrapped(head: str, words: list[str], width: int = 100) -> str:
    lines, line = [], head
    for word in words:
        if len(line) + len(word) + 1 > width:
            lines.append(line)
            line = " " * len(head)
        line += f" {word}"
    return "\n".join([*lines, line])
