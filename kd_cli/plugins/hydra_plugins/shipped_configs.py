"""Puts the YAML that kd ships on Hydra's search path, behind whatever else is there.

So an option in the user's `--config-dir`, which Hydra then searches first, wins over one of ours of
the same name. Hydra takes such a plugin only from the namespace package `hydra_plugins`.
"""

from hydra.plugins.search_path_plugin import SearchPathPlugin

from kd_cli.config.compose import conf_dir


class ShippedConfigs(SearchPathPlugin):
    def manipulate_search_path(self, search_path):
        folders = [one.path.removeprefix("file://") for one in search_path.get_path()]
        search_path.append(provider="kd", path=f"file://{conf_dir()}")
        # After the files, so that one that says more about a network wins; --config-dir's, too.
        for folder in dict.fromkeys([*folders, str(conf_dir())]):
            if "://" not in folder:
                search_path.append(provider="kd-networks", path=f"kd-networks://{folder}")
