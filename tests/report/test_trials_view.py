"""The table of the repairs that were tried."""

import pytest

from bezoar.report.trials_view import HEADER, read_trials


def trial(**more):
    survival = {"worst": 0.02, "p_values": {"4": 0.6}, "removed": True}
    known = {"steps": ["sau"], "share": 0.9, "accuracy_drop": 0.012, "seconds": 8.0}
    return known | {"survival": survival | more.pop("survival", {}), "returned": False} | more


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({}, "no"),
        ({"returned": True}, "after tuning"),
        ({"returned": None}, "no"),
        ({"returned": True, "survival": {"removed": False}}, "yes"),
        ({"returned": None, "survival": {"removed": None}}, "not looked"),
    ],
)
def test_the_signs_that_a_repair_leaves(told, said):
    table = read_trials({"trials": [trial(**told)], "kept": 0, "scan": {"suspects": [4]}})
    assert table.header == HEADER and table.marked == [True]
    ((name, *_, signs, _seconds),) = table.rows
    assert name == "sau, 0.9 of the way" and signs == said


def test_where_nothing_was_found_no_sign_can_be_left():
    watched = trial(survival={"removed": False, "worst": 0.5})
    table = read_trials({"trials": [watched], "kept": 0, "scan": {"suspects": []}})
    assert table.rows[0][2] == "50.0\u00a0%" and table.rows[0][-2] == "–"


def test_a_p_value_of_an_audit_is_shown_where_it_is_the_smaller():
    audited = trial(survival={"exposed": {"4": 0.02}, "removed": False})
    row = read_trials({"trials": [audited], "kept": 0, "scan": {"suspects": [4]}}).rows[0]
    assert row[3] == "0.020" and row[-2] == "yes"


def test_without_labels_it_is_answers_that_changed():
    told = {"trials": [trial()], "kept": 0, "judged_on": "unlabelled images"}
    assert read_trials(told).header[1] == "Answers changed"


def test_a_method_that_could_not_be_used_says_why():
    failed = {"steps": ["tac"], "share": 1.0, "survival": None, "failure": "not this network"}
    table = read_trials({"trials": [failed, trial()], "kept": 1})
    assert table.rows[0][0] == "tac: not this network" and table.marked == [False, True]
