"""Finished runs compared, without TensorFlow.

    groups      runs that differ only in their seeds form a group; each group's verdict
    statistics  intervals, tests and corrections
    columns     the columns of the tables of all commands: names, units, digits
    tables      the tables of a report
    files_for_devices  exported files, and the smallest good one
    reasons     why distilling helped, or did not, in sentences
    figures     which figures are drawn
    plots       how a figure is drawn
    search_plots  the figure of kd tune
    page        HTML and Markdown
    build       the report's content

To add a column: add a row to `COLUMNS` in `columns`. Its `path` is the dotted key of a value in
metrics.json or evaluation.json, and its `tables` are flags of `In`, such as `In.RUN | In.SWEEP`.
If metrics.json does not have the value yet, add it first: see kd_cli/runs/__init__.py.

To add a figure: draw it in `plots`, and call that from `figures`.
"""
