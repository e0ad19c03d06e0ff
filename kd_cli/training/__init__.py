"""Training networks, with a teacher or without.

    step        the traced training step of one or several students
    loop        epochs around it: validation, the best epoch, early stopping, resume
    assembly    a checked plan becomes a step that is ready to train
    train       a run from its data to what it leaves
    schedules   learning rates
    class_weights   weights of the classes in the labels' term
    optimizers  optimizers that Keras lacks
    trackers    who is told of every epoch

To add a schedule, an optimizer or a tracker: write it in the file of that name, and a file in
conf/schedule/, conf/optimizer/ or conf/tracker/ whose `_target_` names it. A tracker's file begins
with the line `# @package tracker.NAME`, because there may be several.
"""

from kd_cli import public_names

# The file of each name that YAML uses.
PUBLIC = {
    "constant": "schedules",
    "cosine": "schedules",
    "warmup_cosine": "schedules",
    "AdamW": "optimizers",
    "TensorBoard": "trackers",
}
__getattr__ = public_names(__name__, PUBLIC)
