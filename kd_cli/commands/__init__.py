"""The commands of `kd`, a file each; `table` lists their words.

    table            the words, what they do, and which file runs them
    job              hands runs over to Hydra, and concludes each in its directory
    execute          runs that share data and teacher, from data to result
    train            train-teacher and train-student
    distill          distill
    self_train       self-train
    compare explain evaluate report cache guide help    one command each
    evaluate_target  what evaluate measures, and on which data
    sweep            the points of a sweep, and its table
    joint            points of a sweep that train together
    result_table     the table at the end of a run
    keys_page        the page of kd distill --help
    show             what Hydra's flags show instead of running: --help, --cfg, completion

To add a command: write its file with a function `run(request) -> int`, and add a row to `table`.
"""
