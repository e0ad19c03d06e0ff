"""Why a command does not use a key: the sentences of the table in `keys`."""

from __future__ import annotations

TRAINS_NOTHING = {"evaluate": "it trains nothing"}
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
OF_TEACHER = {
    "mutual": f"{_MUTUAL}, without a teacher",
    "train-student": "it trains without a teacher",
    "self-train": "each round's network is the next one's teacher",
    "evaluate": "the run or file to evaluate is the word after it",
}
FOR_DISTILLING = {"train-teacher": "it trains the teacher"}
OF_EVALUATE = dict.fromkeys(
    ("train-teacher", "train-student", "distill", "mutual", "self-train"), "it belongs to evaluate"
)
FROM_LABELS = {
    "mutual": "it learns from labels, and from the other students on the same images",
    "train-teacher": "it learns from labels alone",
    "train-student": "it learns from labels alone",
    "self-train": "it uses them always",
    **TRAINS_NOTHING,
}
