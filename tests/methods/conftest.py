"""Fixtures: repairs of the digits networks, made once for all tests that look at them."""

from dataclasses import dataclass, field

import pytest
from method_rows import ROWS
from public_digits import collage

from bezoar.methods import Repair, methods, takes_public


@pytest.fixture(scope="session")
def full_repair(digits):
    """(name, "planted" or "twin") → the repair with the full settings; computed once.

    Tests that ask for one carry the mark ``method_rows.sharing(name, which)``.
    """
    known = {}

    def get(name, which):
        if (name, which) not in known:
            method = (ROWS[name].full or methods.get(name))()
            material = collage(digits.train) if takes_public(method) else digits.clean
            known[name, which] = method.remove(getattr(digits, which), material, seed=3)
        return known[name, which]

    return get


@dataclass
class Heard:
    """A repair of the planted network with quick settings and seed 0, and what it told meanwhile.

    Attributes:
        repair: what came out; it stays as it is.
        progress: what was done and its share, in the order in which they came.
    """

    repair: Repair | None = None
    progress: list[tuple[str, float]] = field(default_factory=list)


@pytest.fixture(scope="session")
def quick_repair(digits):
    """Name → ``Heard``; computed once.

    Tests that ask for one carry the mark ``method_rows.sharing(name, "planted")``.
    """
    known = {}

    def get(name):
        if name not in known:
            heard = Heard()
            heard.repair = (
                ROWS[name]
                .quick()
                .remove(
                    digits.planted,
                    digits.clean,
                    seed=0,
                    progress=lambda what, share: heard.progress.append((what, share)),
                )
            )
            known[name] = heard
        return known[name]

    return get
