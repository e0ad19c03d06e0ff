"""What a teacher teaches: the losses, and the teacher with its outputs.

    losses           one function a loss
    prepare          the teacher of a run: found, checked, and asked about images not trained on
    teacher          the teacher of a run, from a directory or a file
    teacher_checks   a teacher that can't teach is refused, a doubtful one named
    teacher_outputs  its logits for the images of a run, stored on the disk or asked at every step
    logits_cache     logits stored on the disk

To add a loss: write a function `(labels, student, teacher, *, ...)` in `losses`, and a file in
conf/loss/ whose `_target_` names it.
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
