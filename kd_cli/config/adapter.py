"""Checks the numbers by which pixels are scaled before a network."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from kd_cli.errors import ConfigError


def check_adapter(plan: DictConfig, place: str) -> None:
    """Refuses a scale or an offset that has not one number for each channel.

    Args:
        plan: A typed configuration, whose values are in the ranges of the table.
        place: Of an `input` node; a plan without it passes, as one of texts.

    Raises:
        ConfigError: A list of another length, or null.
    """
    adapter = OmegaConf.select(plan, place)
    if adapter is None:
        return
    channels = plan.dataset.image_shape[-1]
    for key in ("scale", "offset"):
        value = adapter[key]
        if value is None:
            raise ConfigError(f"{place}.{key}=null: it needs a value; leave it out for the default")
        if OmegaConf.is_list(value) and len(value) != channels:
            raise ConfigError(
                f"{place}.{key}={value} must be a number, or a list of one number for each channel "
                f"(the images have {channels})"
            )
