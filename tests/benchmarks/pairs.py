"""Steps every pair of `experiment=cifar100_tables` with every method, on random images.

    python tests/benchmarks/pairs.py                      # 13 pairs, a quarter of an hour
    python tests/benchmarks/pairs.py --pairs vgg13_vgg8

A line says what a step of all losses together gave, their sum, or in which line `kd` refused them.
The teacher is untrained and asked live. It is no test because it takes so long.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from pathlib import Path

import methods

PAIRS = Path(__file__).resolve().parents[2] / "conf" / "pair"
LOSSES = ("[hinton,dkd,dist,nkd,at,sp,rkd,pkt,crd]", "[ce,hint]", "[ce,reviewkd]", "simkd")
BASE = (
    "experiment=cifar100_tables", "dataset=npz", "dataset.path=random.npz", "batch_size=16",
)  # fmt: skip


def main() -> int:
    """The number of pairs and losses that did not give a finite number."""
    parser = argparse.ArgumentParser(description=__doc__)
    every = sorted(path.stem for path in PAIRS.glob("*.yaml"))
    parser.add_argument("--pairs", default=",".join(every))
    parser.add_argument("--losses", nargs="*", default=LOSSES)
    args = parser.parse_args()
    methods.ready()
    import keras

    from kd_cli.errors import ConfigError

    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        methods.write_images(100)
        for pair in args.pairs.split(","):
            for loss in args.losses:
                words = [*BASE, f"pair={pair}", f"loss={loss}"]
                words += ["loss.crd.negatives=64"] * ("crd" in loss)
                try:
                    made = methods.engine(words, live=True)
                except ConfigError as error:
                    said, finite = f"refused: {error}", False
                else:
                    value = made.learners[0].means(16)["loss"]
                    said, finite = f"{value:.3f}", math.isfinite(value)
                failed += not finite
                print(f"{pair:<28}{loss:<50}{said}", flush=True)
                keras.backend.clear_session()
    return failed


if __name__ == "__main__":
    sys.exit(main())
