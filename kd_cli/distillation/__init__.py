"""What the student learns from: the losses, and the teacher with its outputs.

    losses           one function for each loss
    prepare          finds and checks a run's teacher, and computes its held-out logits
    teacher          the teacher of a run, from a directory or a file
    teacher_checks   refuses unusable teachers, and warns about doubtful ones
    teacher_outputs  its logits for the images of a run: stored, or computed at every step (live)
    logits_cache     stored logits

To add a loss: write a function `(labels, student, teacher, *, ...) -> {term: [B]}` in `losses`: for
each term one value per example. Add its name to PUBLIC below, so that YAML can write
kd_cli.distillation.NAME. Then write conf/loss/NAME.yaml. If the loss uses `alpha`, `temperature` or
`t_squared`, the file begins with the line `# @package _global_`, sets their defaults at the root,
and passes them on, as in conf/loss/hinton.yaml. A branch in `losses.formula` is optional: without
one, the formula is the function's name with its arguments.
"""

from kd_cli import public_names

# The file of each name that YAML uses.
PUBLIC = {
    "cross_entropy": "losses",
    "function_matching": "losses",
    "hard": "losses",
    "hinton": "losses",
    "soft_cross_entropy": "losses",
}
__getattr__ = public_names(__name__, PUBLIC)
