"""Backdoor attacks: for evaluation with a known trigger, for tests, demos and benchmarks.

Nothing that decides about a stranger's model may import this package (the wall of the design).
"""

from bezoar.attacks.adap_blend import AdapBlend
from bezoar.attacks.adap_patch import AdapPatch
from bezoar.attacks.attack import Attack, Planted, Poisoned, attacks
from bezoar.attacks.awp import AWP
from bezoar.attacks.bad_nets import BadNets
from bezoar.attacks.blend import Blend
from bezoar.attacks.bpp_attack import BppAttack
from bezoar.attacks.feature_collision import FeatureCollision
from bezoar.attacks.iad import IAD
from bezoar.attacks.label_consistent import LabelConsistent
from bezoar.attacks.lira import LIRA
from bezoar.attacks.lp_inversion import L0Inversion, L2Inversion
from bezoar.attacks.several import Several
from bezoar.attacks.sig import SIG
from bezoar.attacks.smooth import Smooth
from bezoar.attacks.spelling import (
    configuration,
    load_attack,
    parse_attack,
    save_attack,
    to_be_planted,
)
from bezoar.attacks.ssba import SSBA
from bezoar.attacks.stored_pattern import StoredPattern
from bezoar.attacks.tbt import TBT
from bezoar.attacks.trojan import TrojanSquare, TrojanWatermark
from bezoar.attacks.wanet import WaNet

__all__ = [
    "AWP",
    "IAD",
    "LIRA",
    "SIG",
    "SSBA",
    "TBT",
    "AdapBlend",
    "AdapPatch",
    "Attack",
    "BadNets",
    "Blend",
    "BppAttack",
    "FeatureCollision",
    "L0Inversion",
    "L2Inversion",
    "LabelConsistent",
    "Planted",
    "Poisoned",
    "Several",
    "Smooth",
    "StoredPattern",
    "TrojanSquare",
    "TrojanWatermark",
    "WaNet",
    "attacks",
    "configuration",
    "load_attack",
    "parse_attack",
    "save_attack",
    "to_be_planted",
]
