"""Why a command does not use a key: the sentences of the table in `keys`."""

from __future__ import annotations

TRAINS_NOTHING = {"evaluate": "it trains nothing"}
NO_TEACHER = {
    "train-teacher": "it asks no teacher",
    "train-student": "it asks no teacher",
    **TRAINS_NOTHING,
}
OF_LOSS = {
    "train-teacher": "it learns from the labels alone",
    "train-student": "it trains without a teacher",
    "self-train": "a pseudo-label is what the last round's network says",
    **TRAINS_NOTHING,
}
OF_ROUNDS = {
    "train-teacher": "it belongs to self-train",
    "train-student": "it belongs to self-train",
    "distill": "it belongs to self-train",
    **TRAINS_NOTHING,
}
OF_TEACHER = {
    "train-student": "it trains without a teacher",
    "self-train": "each round's network is the next one's teacher",
    "evaluate": "the run or file to evaluate is the word after it",
}
FOR_DISTILLING = {"train-teacher": "it trains the teacher"}
OF_EVALUATE = dict.fromkeys(
    ("train-teacher", "train-student", "distill", "self-train"), "it belongs to evaluate"
)
FROM_LABELS = {
    "train-teacher": "it learns from labels alone",
    "train-student": "it learns from labels alone",
    "self-train": "it uses them always",
    **TRAINS_NOTHING,
}
