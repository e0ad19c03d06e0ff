"""A run on the disk, without TensorFlow.

    identity   what makes two runs the same run; directory names
    resolvers  values in YAML that only code can give
    ownership  no run is skipped, continued or overwritten that is not this very run
    state      the state from which a killed run continues
    session    what the runs of one command share in memory
    record     metrics.json
    quality    accuracy, likelihood, calibration, and fidelity to the teacher
    finished   finished runs as they are found

To add a value to metrics.json: write it where the record is made (training/train.py), and say in
`record` what it means.
"""
