"""Why a command has no use for a key, by command: rows of the table of keys share these."""

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
