"""What an .npz file is found to hold before it is unpacked."""

import io
import zipfile

import numpy as np
import pytest

from kd_cli.data.archives import npz_headers, read_arrays
from kd_cli.errors import ConfigError


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_an_array_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "twice.npz"
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for values in ([0, 1], [1, 0]):
            archive.writestr("y.npy", _npy(np.array(values)))
    with pytest.raises(ConfigError, match="holds y twice"):
        npz_headers(path, ["y"])


def test_a_member_without_the_ending_is_not_taken_for_the_array(tmp_path):
    path = tmp_path / "twins.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("y", b"something else")
        archive.writestr("y.npy", _npy(np.array([0, 1])))
    assert npz_headers(path, ["y"])["y"][0] == (2,)
    assert read_arrays(path, ["y"])["y"].tolist() == [0, 1]
