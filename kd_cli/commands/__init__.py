"""One file a command of `kd`.

To add a command: write its file, and a row in the table of commands.
"""
