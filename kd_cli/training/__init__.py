"""Training networks, with a teacher or without.

    step        the traced training step of one or several students
    learner     what one of them does in a step
    average     the moving average of its weights
    balance     the gradient of each loss term
    loop        epochs around it: validation, the best epoch, early stopping, resume
    peers       trainings that learn from each other
    standing    where a training stands, and warnings about it
    checkpoints     the networks of chosen epochs
    assembly    builds a training step from a checked plan
    train       trains a run and writes its directory
    schedules   learning rates
    class_weights   weights of the classes in the labels' term
    optimizers  optimizers that Keras lacks
    trackers    objects that are told of every epoch
    tracker_tensorboard     that of TensorBoard
    tracker_mlflow  that of MLflow
    tracker_wandb   that of Weights & Biases

To add a schedule, an optimizer or a tracker: write it in the file of that name, and add its name to
PUBLIC below, so that YAML can write kd_cli.training.NAME. (A tracker has a file of its own.) Then
write a file in conf/schedule/, conf/optimizer/ or conf/tracker/ whose `_target_` names it.

A tracker is a class. Its constructor gets the keys of its YAML, and its method `epoch(row, model)`
is called after every epoch: see `trackers.Tracker`. Its YAML begins with the line
`# @package tracker.NAME`, because a run may have several trackers.
"""

from kd_cli import public_names

# The file of each name that YAML uses.
PUBLIC = {
    "constant": "schedules",
    "cosine": "schedules",
    "multistep": "schedules",
    "warmup_cosine": "schedules",
    "AdamW": "optimizers",
    "TorchSGD": "optimizers",
    "TensorBoard": "tracker_tensorboard",
    "MLflow": "tracker_mlflow",
    "WandB": "tracker_wandb",
}
__getattr__ = public_names(__name__, PUBLIC)
