"""Backdoor attacks: for evaluation with a known trigger, for tests, demos and benchmarks.

Nothing that decides about a stranger's model may import this package (the wall of the design).
"""

from bezoar.attacks.attack import Attack, Poisoned, attacks, parse_attack
from bezoar.attacks.bad_nets import BadNets
from bezoar.attacks.blend import Blend
from bezoar.attacks.stored_pattern import StoredPattern

__all__ = ["Attack", "BadNets", "Blend", "Poisoned", "StoredPattern", "attacks", "parse_attack"]
