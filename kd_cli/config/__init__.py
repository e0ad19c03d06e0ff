"""From overrides to a checked plan, without TensorFlow.

    keys         the table of keys: type, default, help, range, who uses it
    row          one row of that table
    compose      YAML and overrides become one configuration, by Hydra
    check        that configuration becomes a plan, or a mistake in one line
    plans        plans that follow from a plan: its teacher's, its scratch student's
    idle         keys that would change nothing, and are refused
    debug        what debug=smoke makes smaller
    overrides    overrides as they were typed
    quoting      texts in overrides, and commands that you may type as printed
    messages     errors of Hydra and OmegaConf in your words
    instantiate  `build` calls a node's `_target_`

To add a key: add a field to the table in `keys`.
"""
