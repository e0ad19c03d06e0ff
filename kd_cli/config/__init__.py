"""From overrides to a checked configuration, the plan; without TensorFlow.

    keys         the table of keys: type, default, help, range, who uses it
    nodes        the keys of dataset, cache, checkpoint and pseudo, a part of it
    row          one row of that table
    unused       why a command does not use a key
    compose      YAML and overrides become one configuration, by Hydra
    check        checks that configuration; the result is a plan, or an error in one line
    plans        the plans of the teacher and of the scratch student, from a distill plan
    losses       the entries below loss
    inputs       what the inputs of a dataset are: images, or texts as token ids
    adapter      checks the numbers that scale pixels
    idle         keys that would change nothing, and are refused
    debug        what debug=smoke makes smaller
    overrides    overrides, as the user typed them
    quoting      texts in overrides, and commands that you can type as printed
    messages     errors of Hydra and OmegaConf in plain words
    instantiate  `build` calls a node's `_target_`

To add a key: add a field to the table in `keys`. It gives the type, the default, the help text,
the range, and the commands that do not use the key.
"""
