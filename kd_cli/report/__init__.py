"""Finished runs compared, without TensorFlow.

    groups      runs that differ in more than their seeds, and each group's verdict
    statistics  intervals, tests and corrections
    columns     the columns of the tables of all commands: names, units, digits
    tables      the tables of a report
    figures     which figures are drawn
    plots       how a figure is drawn
    page        HTML and Markdown
    build       the report's content

To add a column: add a row to `COLUMNS` in `columns`, and name there the tables that show it: the
report, the end of a run, a sweep, a comparison, self-training, or `kd evaluate`. To add a figure:
draw it in `plots`, and call that from `figures`.
"""
