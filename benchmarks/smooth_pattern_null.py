"""The null of the smooth pattern: the smallest log ratio of networks without a backdoor.

    BEZOAR_DATA=... python benchmarks/smooth_pattern_null.py [--executor local:2]

Traffic signs make the null: some of them are much easier to reach than the next one. CIFAR-10's
classes are alike, so its networks would narrow the null and say nothing of its tail; on digits most
classes have no pattern. ``smallest_null.py`` tells which networks there are.
"""

from __future__ import annotations

import math

import tyro
from smallest_null import Options, Witness

WITNESS = Witness(
    name="smooth-pattern",
    title="The smallest log ratio of smooth patterns in networks without a backdoor",
    script=__file__,
    log=math.log,
    networks={"digits": 9, "cifar10": 10, "gtsrb": 12, "twelve signs": 12},
    null=("gtsrb", "twelve signs"),
)

if __name__ == "__main__":
    WITNESS.measure(tyro.cli(Options))
