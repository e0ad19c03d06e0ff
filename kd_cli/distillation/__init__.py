"""What the student learns from: the losses, and the teacher with its outputs.

    interface         how a loss is called, and what it may need
    losses            cross-entropy, hinton, function_matching, hard
    logit_losses      DKD, DIST, NKD, the distillation token of DeiT, mutual learning
    feature_losses    AT, SP, RKD, PKT
    hint              projected features: FitNets, projector ensemble, VkD
    contrastive       CRD
    review            ReviewKD
    simkd             SimKD, whose student ends in the teacher's classifier
    several           several teachers as one
    objective         the sum of a run's losses, with their weights
    loss_checks       refuses losses that can't work with a run's data or batches
    prepare           finds and checks a run's teacher, and computes its held-out logits
    teacher           the teacher of a run, from a directory or a file
    teacher_checks    refuses unusable teachers, and warns about doubtful ones
    teacher_outputs   what a training gets from it: stored, or computed at every step (live)
    teacher_features  what losses get of its layers
    teacher_tables    its outputs for the rows of a split
    logits_cache      how they are stored
    logits_file       a file of them in the place of a teacher

To add a loss: write a function `(labels, student, teacher, *, ...) -> {term: [B]}`, for each term
one value per example, or a layer (see `interface`). Add its name to PUBLIC below, so that YAML can
write kd_cli.distillation.NAME. Then write conf/loss/NAME.yaml, with one entry below `loss`. If the
loss uses `alpha`, `temperature` or `t_squared`, the file sets their defaults at the root, and
passes them on, as in conf/loss/hinton.yaml. A branch in `losses.formula` is optional: without one,
the formula is the function's name with its arguments.
"""

from kd_cli import public_names

# The file of each name that YAML uses.
PUBLIC = {
    "CRD": "contrastive",
    "Hint": "hint",
    "ReviewKD": "review",
    "SimKD": "simkd",
    "attention": "feature_losses",
    "cross_entropy": "losses",
    "deit": "logit_losses",
    "dist": "logit_losses",
    "dkd": "logit_losses",
    "function_matching": "losses",
    "hard": "losses",
    "hinton": "losses",
    "mutual": "logit_losses",
    "nkd": "logit_losses",
    "pkt": "feature_losses",
    "relational": "feature_losses",
    "requires": "interface",
    "similarity": "feature_losses",
    "soft_cross_entropy": "losses",
}
__getattr__ = public_names(__name__, PUBLIC)
