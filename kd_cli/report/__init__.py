"""Finished runs compared, without TensorFlow.

    groups      runs that differ in more than their seeds, and each group's verdict
    statistics  intervals, tests and corrections
    tables      the tables of a report
    figures     which figures are drawn
    plots       how a figure is drawn
    page        HTML and Markdown
    build       the report's content

To add a column: add a row to `_COLUMNS` in `tables`. To add a figure: draw it in `plots`, and call
that from `figures`.
"""
