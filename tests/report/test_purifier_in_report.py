"""A purifier in the report of a repair: what it says, and what a broken record does to it."""

import pytest

from bezoar.report.repair_view import read_repair

COST = {"milliseconds per image": 1.932, "milliseconds per image without": 1.2, "batch": 256}


def figure(view, label):
    return next((item for item in view.figures if item.label == label), None)


def test_the_cost_and_the_untouched_weights_are_told():
    view = read_repair({"wrapped": {"parameters": 62243}, "changes": [], "repair": {"cost": COST}})
    assert view.wrapped == (
        "The weights are unchanged; a purifier of 62,243 parameters stands in front."
    )
    cost = figure(view, "Cost per image")
    assert (cost.value, cost.note) == ("1.93 ms", "1.2 ms without, batches of 256")


def test_weights_that_changed_behind_a_purifier_are_not_called_unchanged():
    change = {"tensor": "fc.weight", "shape": [3, 4], "relative_change": 0.5}
    view = read_repair({"wrapped": {"parameters": 5}, "changes": [change]})
    assert view.wrapped.startswith("The weights are changed")


@pytest.mark.parametrize("record", [{}, {"wrapped": None}, {"wrapped": "x", "repair": {"cost": 7}}])
def test_nothing_is_said_where_there_is_no_purifier(record):
    view = read_repair({"outcome": "done", **record})
    assert view.wrapped == "" and figure(view, "Cost per image") is None


def test_a_cost_that_is_no_number_is_left_out():
    for value in ("fast", float("nan"), None, []):
        cost = {**COST, "milliseconds per image": value}
        view = read_repair({"outcome": "done", "repair": {"cost": cost}})
        assert figure(view, "Cost per image") is None
