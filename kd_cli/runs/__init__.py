"""A run on the disk, without TensorFlow.

    identity   what makes two runs the same run; directory names
    asked      runs that were asked for: each is checked once and has one directory
    resolvers  values in YAML that only code can give
    ownership  no run is skipped, continued or overwritten that is not this very run
    directory  the directory of an unfinished run, held by this process
    state      the state from which a killed run continues
    session    what the runs of one command share in memory
    record     `Record`, the content of metrics.json
    model_file model.keras of a finished run: where it is, whether it is whole
    quality    accuracy, likelihood, calibration, and fidelity to the teacher, from logits
    finished   finished runs as they are found

To add a value to metrics.json: add a field with its meaning to `Record`, and give its value where
the record is made (training/train.py). If older runs lack it, it is a `_may_say` field, or the
schema version rises.
"""
