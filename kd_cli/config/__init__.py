"""From overrides to a checked plan, without TensorFlow.

    keys         which keys there are, and where they belong
    schema       their types and ranges
    compose      YAML and overrides become one configuration, by Hydra
    check        that configuration becomes a plan, or a mistake in one line
    debug        what debug=smoke makes smaller
    overrides    overrides as they were typed
    messages     errors of Hydra and OmegaConf in your words
    instantiate  `build` calls a node's `_target_`

To add a key: give it a type in `schema`, and say there which commands have no use for it.
"""
