"""The Hydra launcher `hydra/launcher=joint`; what it does is in `kd_cli/commands/joint.py`.

Hydra takes a launcher only from the namespace package `hydra_plugins`, so this folder is put on
`sys.path` (`kd_cli/config/compose.py`). Every command scans it, so nothing heavy is imported here.
"""

from hydra.plugins.launcher import Launcher


class JointLauncher(Launcher):
    """Trains the points of a sweep that can share data, teacher and graph together.

    Args:
        max_points: Points that train together at most; a bigger group is cut into several.
    """

    def __init__(self, max_points):
        self.max_points = max_points

    def setup(self, *, hydra_context, task_function, config):
        self.context, self.config, self.session = hydra_context, config, task_function.session

    def launch(self, job_overrides, initial_job_idx):
        from kd_cli.commands.joint import launch

        options = (initial_job_idx, self.max_points, self.session)
        return launch(self.context, self.config, job_overrides, *options)
