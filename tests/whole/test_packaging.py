"""The wheel carries what is needed, and the installed program works from another directory."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import only_run

ROOT = Path(__file__).parent.parent.parent
# scikit-learn is a dependency of the tests alone; importing it now fails.
WITHOUT_SKLEARN = (
    "import sys; sys.modules['sklearn'] = None; from kd_cli.cli import main; sys.exit(main())"
)


@pytest.mark.slow
def test_the_wheel_works_from_another_directory(work):
    pip = [sys.executable, "-m", "pip"]
    subprocess.run(
        [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", "wheel", str(ROOT)], check=True
    )
    (wheel,) = (work / "wheel").glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    shipped = {
        f"kd_cli/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")
    }
    assert shipped <= packed
    page = {f"kd_cli/export/{name}" for name in ("page.html", "page.js", "network.js")}
    assert page | {"kd_cli/data/digits.npz"} <= packed
    assert not any(name.startswith(("tests/", "conf/")) for name in packed)
    subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--target", "site", str(wheel)], check=True
    )
    # PYTHONPATH comes before the environment's packages: this kd is the one from the wheel.
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SKLEARN, "distill", "epochs=1", "teacher.training.epochs=1"],
        env={**os.environ, "PYTHONPATH": str(work / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    _, record = only_run(work / "outputs" / "distill")
    assert record["dataset"]["name"] == "digits"
    where = subprocess.run(
        [sys.executable, "-c", "import kd_cli.config.compose as c; print(c.conf_dir())"],
        env={**os.environ, "PYTHONPATH": str(work / "site")},
        capture_output=True,
        text=True,
    )
    assert where.stdout.strip() == str(work / "site" / "kd_cli" / "conf")
