"""A run on the disk, without TensorFlow.

    identity    run ids and directory names
    asked       the requested runs: each is composed, checked and given a directory once
    resolvers   values in YAML that code computes: ${kd....}
    ownership   checks that a directory belongs to this run before kd resumes, skips or writes it
    directory   the directory of an unfinished run, held by this process
    state       the state from which an interrupted run continues
    session     what the runs of one command share in memory
    record      `Record`, the content of metrics.json
    environment versions of what computes, and the commit
    model_file  model.keras of a finished run: where it is, whether it is whole
    vocabulary  vocabulary.json of a run on texts
    quality     accuracy, likelihood, calibration, and agreement with the teacher, from logits
    finished    finds finished runs in folders

To add a value to metrics.json: add a field with its meaning to `Record`, and give its value where
the record is made (training/train.py). If older runs lack it, make it a `may_say` field, or raise
the schema version.
"""
