"""The commands of `kd`, one file for each; `table` lists their words.

    arguments        what the user typed becomes a command, overrides and flags
    table            the words, what they do, and which file runs them
    job              passes runs to Hydra, and ends each in its directory
    execute          trains runs that share data and teacher
    train            train-teacher and train-student
    distill          distill
    self_train       self-train
    mutual           students that teach each other
    compare explain evaluate export logits report cache guide help    one command each
    estimate         how long a run takes, for explain
    evaluate_target  what evaluate and export mean, and on which data
    evaluate_network that network, read and made ready
    several_students student=A,B,C of chain and mutual
    sweep            the points of a sweep, and its table
    joint            points of a sweep that train together
    tune             kd tune: its words, its table and what it leaves
    tune_compare     kd tune --compare: a search for the scratch student too, and both winners
    spaces           what a search may choose from
    search           a search: each trial is a point of a sweep
    search_result    its table, its files, and the command that confirms the best
    study            what was proposed and tried, for several processes at once
    result_table     the table at the end of a run
    keys_page        the page of kd distill --help
    show             what Hydra's flags show instead of running: --help, --cfg, completion

To add a command: write its file with a function `run(request) -> int` that returns the exit code,
and add a row to `table`.

To add a command that trains: write its file with a function

    train_it(runs, dataset, started, session) -> training.train.Results

that trains the `runs` on one `dataset` and returns the record of each by its directory. Add a row
to `table` with run="job:run", trains="FILE:train_it" and config="NAME". Write conf/NAME.yaml with
`defaults: [base, _self_]` and `command: NAME`. If the command does not use some keys, give the
reason for each in `config.keys` (`unused`).
"""
