"""Verdicts from evidence made by hand."""

import math

import pytest

from bezoar.methods import Evidence
from bezoar.verdict import Levels, Verdict, judge

NAMES = ("ant", "bee", "cow", "dog")


def evidence(p_values, *, carried=None, scores=None, values=(1.0, 2.0, 3.0, 4.0)):
    return Evidence(
        method="hand",
        statistic="Length of something",
        values=tuple(values),
        scores=tuple(scores or (-4.0, -1.0, 0.0, 1.0)),
        p_values=tuple(p_values),
        null="none",
        carried=None if carried is None else tuple(carried),
    )


def test_there_are_three_verdicts_and_none_calls_a_model_clean():
    assert [verdict.value for verdict in Verdict] == [
        "backdoor found",
        "suspicious",
        "nothing found",
    ]


@pytest.mark.parametrize(
    ("p", "share", "verdict"),
    [
        (0.001, 0.95, Verdict.BACKDOOR_FOUND),
        (0.01, 0.8, Verdict.BACKDOOR_FOUND),  # both limits belong to the finding
        (0.001, 0.79, Verdict.SUSPICIOUS),
        (0.001, None, Verdict.SUSPICIOUS),  # a witness without a perturbation proves nothing
        (0.0101, 0.95, Verdict.SUSPICIOUS),
        (0.05, 0.95, Verdict.SUSPICIOUS),
        (0.0501, 0.95, Verdict.NOTHING_FOUND),
        (1.0, 1.0, Verdict.NOTHING_FOUND),
    ],
)
def test_the_verdict_needs_a_small_p_value_and_a_shift_that_works(p, share, verdict):
    carried = None if share is None else (share, 0.0, 0.0, 0.0)
    judgement = judge([evidence((p, 1.0, 1.0, 1.0), carried=carried)], NAMES)
    assert judgement.verdict is verdict
    assert judgement.suspects == (() if verdict is Verdict.NOTHING_FOUND else (0,))
    assert judgement.p_values == (p, 1.0, 1.0, 1.0)


def test_a_shift_that_works_for_another_class_proves_nothing():
    judgement = judge([evidence((0.001, 1, 1, 1), carried=(0.1, 1.0, 1.0, 1.0))], NAMES)
    assert judgement.verdict is Verdict.SUSPICIOUS


def test_classes_are_ranked_by_p_value_and_then_by_score():
    judgement = judge([evidence((1.0, 0.03, 1.0, 0.002), scores=(-0.5, -3, -0.7, -5))], NAMES)
    assert judgement.ranking == (3, 1, 2, 0)
    assert judgement.suspects == (3, 1)


def test_a_class_without_a_score_comes_last():
    judgement = judge([evidence((1.0, 1.0, 1.0, 1.0), scores=(math.nan, 0.5, -0.5, 2.0))], NAMES)
    assert judgement.ranking == (2, 1, 3, 0)
    assert judgement.verdict is Verdict.NOTHING_FOUND


def test_two_witnesses_pay_for_having_two_chances():
    alone = evidence((0.03, 1.0, 1.0, 1.0))
    assert judge([alone], NAMES).verdict is Verdict.SUSPICIOUS
    both = judge([alone, evidence((0.9, 0.5, 1.0, 1.0))], NAMES)
    assert both.verdict is Verdict.NOTHING_FOUND
    assert both.p_values == pytest.approx((0.06, 1.0, 1.0, 1.0))


def test_the_witness_that_saw_it_gives_the_reason():
    blind = evidence((1.0, 1.0, 1.0, 1.0), carried=(0.0,) * 4)
    seeing = evidence((0.001, 1.0, 1.0, 1.0), carried=(0.9, 0.0, 0.0, 0.0))
    judgement = judge([blind, seeing], NAMES)
    assert judgement.verdict is Verdict.BACKDOOR_FOUND
    assert "length of something is 1, 4.0 standard deviations below" in judgement.reasons[0]
    assert "p = 0.002, corrected for having picked the smallest of 4" in judgement.reasons[0]
    assert "carries 90 %" in judgement.reasons[1] and "ant" in judgement.reasons[1]


def test_one_reason_says_what_was_nearest_when_nothing_was_found():
    judgement = judge([evidence((1.0, 0.3, 1.0, 1.0))], NAMES)
    assert judgement.reasons == (
        "No class stands out: the most unusual one is bee with p = 0.3, and 0.05 would be "
        "suspicious.",
    )


def test_the_levels_can_be_chosen():
    seen = [evidence((0.03, 1.0, 1.0, 1.0), carried=(0.6, 0, 0, 0))]
    loose = Levels(suspicious=0.1, found=0.05, carried=0.5)
    assert judge(seen, NAMES, loose).verdict is Verdict.BACKDOOR_FOUND
    strict = Levels(suspicious=0.01)
    assert judge(seen, NAMES, strict).verdict is Verdict.NOTHING_FOUND


def test_very_small_p_values_are_not_printed_as_zero():
    judgement = judge([evidence((1e-9, 1.0, 1.0, 1.0))], NAMES)
    assert "(p < 0.0001, corrected" in judgement.reasons[0]
