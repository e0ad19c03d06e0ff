"""The device of a process, against a TensorFlow with two GPUs that keeps its rules for them."""

from types import SimpleNamespace

import pytest

from kd_cli import device
from kd_cli.errors import ConfigError

GPUS = [SimpleNamespace(name=f"/physical_device:GPU:{number}") for number in (0, 1)]


class Config:
    """What a choice may be until the first tensor, and must be from then on.

    As tensorflow/python/eager/context.py (`set_visible_devices`, `set_memory_growth`).
    """

    def __init__(self, gpus):
        self.gpus, self.visible, self.growth, self.begun = gpus, list(gpus), set(), False
        self.experimental = self

    def list_physical_devices(self, kind):
        return self.gpus

    def get_visible_devices(self, kind):
        return self.visible

    def set_visible_devices(self, use, kind):
        if use != self.visible and self.begun:
            raise RuntimeError("Visible devices cannot be modified after being initialized")
        self.visible = use

    def set_memory_growth(self, gpu, enable):
        if gpu.name not in self.growth and self.begun:
            raise RuntimeError("Physical devices cannot be modified after being initialized")
        self.growth.add(gpu.name)

    def get_device_details(self, gpu):
        return {"device_name": f"Model {gpu.name[-1]}"}


@pytest.fixture
def process(monkeypatch):
    """Starts a process with so many GPUs."""

    def start(count):
        config = Config(GPUS[:count])
        monkeypatch.setattr(device, "_import_quietly", lambda: SimpleNamespace(config=config))
        return config

    return start


@pytest.mark.parametrize(
    ("asked", "count", "name", "visible"),
    [
        ("auto", 2, "Model 0", [0]),
        ("gpu", 2, "Model 0", [0]),
        ("gpu:1", 2, "Model 1", [1]),
        ("cpu", 2, "cpu", []),
        ("auto", 0, "cpu", []),
        ("cpu", 0, "cpu", []),
    ],
)
def test_the_device_that_is_asked_for_is_the_only_visible_one(process, asked, count, name, visible):
    config = process(count)
    assert device.set_up(asked) == name
    assert config.visible == [GPUS[n] for n in visible]
    assert config.growth == {GPUS[n].name for n in visible}
    config.begun = True
    assert device.set_up(asked) == name  # each point of a sweep asks


@pytest.mark.parametrize(("asked", "count"), [("gpu", 0), ("gpu:2", 2)])
def test_a_gpu_that_is_not_there(process, asked, count):
    process(count)
    with pytest.raises(ConfigError, match=f"device={asked}: TensorFlow finds {count} GPUs"):
        device.set_up(asked)


@pytest.mark.parametrize(
    ("first", "then", "name"),
    [("gpu:0", "gpu:1", "Model 0"), ("auto", "cpu", "Model 0"), ("cpu", "auto", "cpu")],
)
def test_a_process_stays_on_its_device(process, first, then, name):
    config = process(2)
    device.set_up(first)
    config.begun = True
    with pytest.raises(ConfigError, match=f"device={then}: this process computes on {name} alre"):
        device.set_up(then)
    assert device.set_up(first) == name


def test_two_names_of_one_device_agree(process):
    config = process(1)
    device.set_up("auto")
    config.begun = True
    assert device.set_up("gpu") == device.set_up("gpu:0") == "Model 0"


def test_a_source_of_images_decodes_on_the_wanted_device(process):
    config = process(2)
    with pytest.raises(ZeroDivisionError), device.wanting("gpu:1"):
        device.import_tensorflow()
        assert config.visible == GPUS[1:]
        _ = 1 / 0
    process(2)
    device.import_tensorflow()  # no longer wanted
    config = device.import_tensorflow().config
    assert config.visible == GPUS[:1]


def test_the_dataset_s_source_gets_the_device_of_the_run(monkeypatch):
    from omegaconf import OmegaConf

    from kd_cli.data import dataset

    seen = []

    def build(node, what):
        seen.append(device._wanted.get())
        raise ConfigError("enough")

    monkeypatch.setattr(dataset, "build", build)
    for asked in ("cpu", "gpu:1"):
        with pytest.raises(ConfigError, match="enough"):
            dataset.load_dataset(OmegaConf.create({"source": {}}), asked)
    assert seen == ["cpu", "gpu:1"] and device._wanted.get() == "auto"
