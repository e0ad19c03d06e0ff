"""`kd logits WHAT`: writes the logits of a run or file on all images of a dataset.

The file can be given to `kd distill` as `teacher.logits`, here or on a machine without the network.
It lies below outputs/logits/, under a name of what it was made of; it is not written twice.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf

from kd_cli.commands.evaluate_network import network_of
from kd_cli.commands.evaluate_target import (
    Target,
    check_same,
    find,
    plan_of,
    warn_of_classes,
    with_data,
)
from kd_cli.commands.table import Request
from kd_cli.config.row import is_name
from kd_cli.data.dataset import load_dataset
from kd_cli.device import set_up
from kd_cli.errors import ConfigError, RunFailed, first_line
from kd_cli.export.formats import FORMATS
from kd_cli.files import remove_leftovers, write_npz
from kd_cli.runs import identity
from kd_cli.runs.session import Session
from kd_cli.terminal import CountProgress, messages, shown
from kd_cli.training import assembly


def run(request: Request) -> int:
    """Writes the file, or names the one that is there.

    Raises:
        ConfigError: What can't be asked, or does not fit its data.
        RunFailed: It broke.
    """
    plan = plan_of(request, "asks")
    try:
        with messages():
            target = find(plan.what, exported=True)
            if target.format:
                FORMATS[target.format].require()
            plan, own = with_data(plan, request.overrides, target)
            path = _place(plan, target)
            there = path.exists()
            if not there:
                arrays = _asked(plan, target, own)
                remove_leftovers(path.parent)
                write_npz(path, arrays)
    except (ConfigError, OSError):
        raise
    except Exception as error:
        hint = "HYDRA_FULL_ERROR=1 shows the traceback"
        raise RunFailed(f"{first_line(error)} ({hint})") from error
    print(f"{'written before' if there else 'written'}: {shown(path)}")
    print(f"to distil from it: kd distill teacher.logits={shown(path)} (and the same dataset)")
    return 0


def _place(plan: DictConfig, target: Target) -> Path:
    plain = OmegaConf.to_container(plan)
    made_of = {
        "file": identity.content(target.file),
        "dataset": identity.dataset_spec(plan.dataset),
        "augment": {key: plain["augment"][key] for key in ("evaluate", "size")},
        "input": plain["input"],
    }
    stem = target.name if is_name(target.name) else identity.digest(target.name)
    return (
        Path(plan.outputs) / "logits" / f"{plan.dataset.name}-{stem}-{identity.digest(made_of)}.npz"
    )


def _asked(plan: DictConfig, target: Target, own: bool) -> dict[str, np.ndarray]:
    """The arrays of the file."""
    dataset = load_dataset(plan.dataset, plan.device)
    if own:
        check_same(plan, target.record, dataset)
    if target.record:
        warn_of_classes(target.record, dataset)
    set_up(plan.device)
    from kd_cli.distillation.logits_file import parts_of
    from kd_cli.networks.predict import predict_batches

    views = assembly.augmentation(plan, dataset, Session())
    prepare = views.evaluate if views is not None else None
    network = network_of(plan, target, dataset)
    found = {
        "fingerprint": np.array(dataset.fingerprint),
        "class_names": np.array(dataset.class_names),
    }
    for part, split in parts_of(dataset).items():
        rows = []
        with CountProgress(f"{plan.what} on {part}", len(split)) as progress:
            for batch in predict_batches(network.predict, split, prepare):
                rows.append(batch)
                progress.done(sum(map(len, rows)))
        found[part] = np.concatenate(rows)
        if not np.isfinite(found[part]).all():
            raise ConfigError(f"{plan.what}: its logits on {dataset.name} are not finite")
    return found
