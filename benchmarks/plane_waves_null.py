"""The null of plane waves: the smallest log odds ratio of networks without a backdoor.

    BEZOAR_DATA=... python benchmarks/plane_waves_null.py [--executor local:2]

Networks for digits, which such waves hardly lead anywhere, have far larger ones: they would widen
the null and say nothing of its tail. ``smallest_null.py`` tells which networks there are.
"""

from __future__ import annotations

import tyro
from smallest_null import Options, Witness

WITNESS = Witness(
    name="plane-waves",
    title="The smallest log odds ratio of plane waves in networks without a backdoor",
    script=__file__,
    log=float,  # they are log ratios
    networks={"digits": 9, "cifar10": 10, "gtsrb": 8, "twelve signs": 6},
    null=("cifar10", "gtsrb", "twelve signs"),
)

if __name__ == "__main__":
    WITNESS.measure(tyro.cli(Options))
