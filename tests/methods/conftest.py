"""Fixtures: repairs of the digits networks with every method's full settings."""

import pytest
from method_rows import ROWS
from public_digits import collage

from bezoar.methods import methods, takes_public


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
