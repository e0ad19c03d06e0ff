"""Why a command does not use a key: the sentences of the table in `keys`."""

from __future__ import annotations

TRAINS_NOTHING = dict.fromkeys(("evaluate", "export", "logits"), "it trains nothing")
_TRAIN = ("train-teacher", "train-student", "distill", "mutual", "self-train")
_MUTUAL = "its students teach each other"
NO_TEACHER = {
    "mutual": _MUTUAL,
    "train-teacher": "it asks no teacher",
    "train-student": "it asks no teacher",
    **TRAINS_NOTHING,
}
OF_LOSS = {
    "mutual": "its loss is fixed: the cross-entropy, and KL from the other students at T = 1",
    "train-teacher": "it learns from the labels alone",
    "train-student": "it trains without a teacher",
    "self-train": "a pseudo-label is what the last round's network says",
    **TRAINS_NOTHING,
}
OF_ROUNDS = {
    "mutual": "it belongs to self-train",
    "train-teacher": "it belongs to self-train",
    "train-student": "it belongs to self-train",
    "distill": "it belongs to self-train",
    **TRAINS_NOTHING,
}
# The network and its data are given by a run or a file.
OF_WHAT = {
    "evaluate": "the run or file to evaluate is the word after it",
    "export": "the run or file to export is the word after it",
    "logits": "the run or file to ask is the word after it",
}
OF_TEACHER = {
    "mutual": f"{_MUTUAL}, without a teacher",
    "train-student": "it trains without a teacher",
    "self-train": "each round's network is the next one's teacher",
    **OF_WHAT,
}
FOR_DISTILLING = {"train-teacher": "it trains the teacher"}
OF_EVALUATE = dict.fromkeys(_TRAIN, "it belongs to evaluate, export and logits")
OF_EXPORT = dict.fromkeys((*_TRAIN, "evaluate", "logits"), "it belongs to export")
FROM_LABELS = {
    "mutual": "it learns from labels, and from the other students on the same examples",
    "train-teacher": "it learns from labels alone",
    "train-student": "it learns from labels alone",
    "self-train": "it uses them always",
    **TRAINS_NOTHING,
}
