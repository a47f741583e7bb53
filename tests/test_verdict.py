"""Verdicts from evidence made by hand."""

import math
from dataclasses import replace

import pytest
import torch

from bezoar.errors import InputError
from bezoar.methods import Evidence
from bezoar.methods.neural_cleanse_triggers import Triggers
from bezoar.proving import Proof
from bezoar.verdict import Levels, Verdict, judge
from bezoar.wording import FALLBACK, PATCH

NAMES = ("ant", "bee", "cow", "dog")


def evidence(p_values, *, carried=None, scores=None, values=(1.0, 2.0, 3.0, 4.0), **more):
    return Evidence(
        method="hand",
        statistic=more.pop("statistic", "Length of something"),
        values=tuple(values),
        scores=tuple(scores or (-4.0, -1.0, 0.0, 1.0)),
        p_values=tuple(p_values),
        null="none",
        carried=None if carried is None else tuple(carried),
        **more,
    )


def triggers(classes):
    shape = (len(classes), 1, 2, 2)
    ones = tuple(1 for _ in classes)
    return Triggers(
        classes=tuple(classes),
        masks=torch.full(shape, 0.25),
        patterns=torch.ones(shape),
        norms=torch.ones(len(classes)),
        success=torch.ones(len(classes)),
        counted=ones,
        penalties=tuple(map(float, ones)),
        epochs=ones,
        passes=1,
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
    (reason,) = judgement.reasons
    assert "length of something is 1, 4.0 standard deviations below" in reason
    assert "p = 0.002, corrected for having picked the smallest of 4" in reason
    assert "carries 90 % of the rest into class ant" in reason


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


@pytest.mark.parametrize(
    "wrong",
    [{"suspicious": 0}, {"found": 1}, {"found": math.nan}, {"carried": 1.1}, {"natural": -0.1}],
)
def test_levels_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))} is .*; expected it in"):
        Levels(**wrong)


def test_very_small_p_values_are_not_printed_as_zero():
    judgement = judge([evidence((1e-9, 1.0, 1.0, 1.0))], NAMES)
    assert "(p < 0.0001, corrected" in judgement.reasons[0]


# -- several witnesses -----------------------------------------------------------------------------


def test_one_witness_must_both_find_the_class_and_make_it_work():
    unusual = evidence((0.001, 1, 1, 1), carried=(0.1, 0, 0, 0))
    works = evidence((0.9, 1, 1, 1), carried=(1.0, 1, 1, 1))  # as it does in clean models, too
    judgement = judge([unusual, works], NAMES)
    assert judgement.verdict is Verdict.SUSPICIOUS and judgement.proven == ()
    assert not any("100 %" in reason for reason in judgement.reasons), "it saw nothing unusual"


def test_the_witness_that_proves_a_class_decides_it_and_else_the_one_that_finds_it_most_unusual():
    silent = evidence((0.0001, 1, 0.4, 1))
    proving = evidence((0.002, 1, 0.5, 1), carried=(0.9, 0, 0, 0))
    judgement = judge([silent, proving], NAMES)
    assert judgement.verdict is Verdict.BACKDOOR_FOUND and judgement.proven == (0,)
    assert judgement.deciding == (1, 0, 0, 0)
    assert judgement.p_values[0] == pytest.approx(0.0002), "the smallest one all the same"
    assert "carries" in judgement.reasons[0] and "carries" not in judgement.reasons[1]
    assert judge([proving, silent], NAMES).deciding == (0, 0, 1, 0)


def test_a_proof_pays_for_the_number_of_witnesses_too():
    sure = evidence((0.006, 1, 1, 1), carried=(1.0, 0, 0, 0))
    assert judge([sure], NAMES).verdict is Verdict.BACKDOOR_FOUND
    judgement = judge([sure, evidence((1, 1, 1, 1))], NAMES)
    assert judgement.verdict is Verdict.SUSPICIOUS
    (reason,) = judgement.reasons
    assert "p = 0.012, " in reason
    assert "the smallest of 4, times 2 for as many methods). " in reason
    assert " A finding needs p <= 0.01" in reason and reason.endswith(", too; that is not reached.")


def test_each_witness_speaks_its_own_words():
    patch = evidence(
        (0.001, 1, 1, 1),
        carried=(0.9, 0, 0, 0),
        recovered=triggers(range(4)),
        statistic="L1 norm of the mask",
    )
    assert patch.told is PATCH
    assert judge([patch], NAMES).reasons == (
        f"{patch.method}, class ant: L1 norm of the mask is 1 pixels, 4.0 median absolute "
        "deviations below the median class (p = 0.001, corrected for having picked the smallest "
        "of 4). Recovered from four fifths of the images, that patch carries 90 % of the rest "
        "into class ant; 80 % are needed and reached for a proof.",
    )
    fallen = evidence((0.02, 1, 1, 1), words=FALLBACK)
    (reason,) = judge([fallen], NAMES).reasons
    assert "corrected" not in reason
    assert reason.endswith("(p = 0.02, against the strongest class of those networks).")


def test_where_nothing_was_recovered_for_the_suspect_no_share_is_told():
    other = evidence((0.001, 1, 1, 1), carried=(0.0, 0.9, 0, 0), recovered=triggers([1]))
    judgement = judge([other], NAMES)
    assert judgement.verdict is Verdict.SUSPICIOUS
    assert len(judgement.reasons) == 1
    assert [other.carried_into(k) for k in range(4)] == [None, 0.9, None, None]
    assert other.told is not PATCH, "one trigger alone was not found by comparing sizes"


@pytest.mark.parametrize("score", [math.nan, -math.inf])
def test_a_score_that_is_no_number_is_left_out(score):
    judgement = judge([evidence((0.001, 1, 1, 1), scores=(score, 0, 0, 0))], NAMES)
    assert ", class ant: length of something is 1 (p = 0.001, " in judgement.reasons[0]


# -- recovered triggers, tried class by class ------------------------------------------------------

NEEDED = "80 % are needed"
REACHED = f"{NEEDED} and reached for a proof."
OF_SOME = f"{NEEDED} for a proof, of all or of some classes: they are reached of 2."
NATURAL = "through the features that separate these classes anyway; from 75 % on that may be a "
NATURAL += "natural likeness and is no proof."
UNLIKE = "likeness of the classes, which is no proof; give images of that class."


def tried(sources=(1, 2), *, counted=30, carried=0.9, natural: float | None = 0.1, firm=None):
    """A proof; every source has enough images if ``firm`` does not say otherwise."""
    return Proof(sources, counted, carried, natural, len(sources) if firm is None else firm)


def patch(share, p=0.001):
    return evidence((p, 1, 1, 1), carried=(share, 0, 0, 0), recovered=triggers(range(4)))


def shift(share):
    return evidence((0.001, 1, 1, 1), carried=(share, 0, 0, 0), perturbations=torch.ones(4, 2))


@pytest.mark.parametrize(
    ("seen", "proof", "found", "ending"),
    [
        pytest.param(patch(0.9), tried(natural=0.74), True, REACHED, id="works"),
        pytest.param(patch(0.9), tried(natural=None), False, UNLIKE, id="natural unknown"),
        pytest.param(
            patch(0.9), tried(natural=0.75), False, f"It works to 75 % {NATURAL}", id="natural"
        ),
        pytest.param(
            patch(0.9),
            tried((1,)),
            False,
            ", bee; 2 are needed, for two classes may just look alike.",
            id="one source",
        ),
        pytest.param(
            patch(0.9),
            tried((), natural=None),
            False,
            "It carries 80 % of the images of 0 other classes; 2 are needed, for two classes may "
            "just look alike.",
            id="no source",
        ),
        pytest.param(patch(0.5), tried(carried=0.5), True, OF_SOME, id="of some"),
        pytest.param(
            patch(0.5),
            tried(carried=0.5, natural=0.8),
            False,
            f"{OF_SOME} It works to 80 % {NATURAL}",
            id="of some, natural",
        ),
        pytest.param(
            patch(0.5),
            tried(carried=0.5, firm=1),
            False,
            f"{NEEDED} for a proof. It carries 80 % of the images of 2 other classes, of which "
            "fewer than 2 have 3 held-out images or more: among 4 classes that may be chance.",
            id="of some, by chance",
        ),
        pytest.param(
            patch(0.9),
            tried((), counted=0, carried=0.0, natural=None),
            False,
            "picked the smallest of 4). No image of another class is left to try it on that it was "
            "not made from.",
            id="no image left",
        ),
        pytest.param(shift(0.8), tried(), True, REACHED, id="shift"),
        pytest.param(shift(0.79), tried(carried=0.79), True, OF_SOME, id="shift of some"),
        pytest.param(
            shift(0.9),
            tried((1,)),
            False,
            ", bee; 2 are needed, for two classes may just look alike.",
            id="shift of one",
        ),
        pytest.param(
            shift(0.9), tried(natural=0.9), False, f"It works to 90 % {NATURAL}", id="natural shift"
        ),
        # nothing to try: the witness's own share decides
        pytest.param(patch(0.8), None, True, REACHED, id="untried"),
        pytest.param(patch(0.79), None, False, f"{NEEDED} for a proof.", id="untried, too few"),
    ],
)
def test_what_a_recovered_trigger_does_class_by_class_decides(seen, proof, found, ending):
    judgement = judge([seen], NAMES, prove=lambda evidence, k: proof)
    assert judgement.verdict is (Verdict.BACKDOOR_FOUND if found else Verdict.SUSPICIOUS)
    assert judgement.suspects == (0,) and judgement.proven == ((0,) if found else ())
    assert judgement.proofs == ({} if proof is None else {(0, 0): proof})
    (reason,) = judgement.reasons
    assert reason.endswith(ending)


@pytest.mark.parametrize("share", [0.9, 0.5])
def test_a_trigger_that_works_still_needs_the_small_p_value(share):
    judgement = judge([patch(share, 0.02)], NAMES, prove=lambda evidence, k: tried(carried=share))
    assert judgement.verdict is Verdict.SUSPICIOUS and judgement.proven == ()
    (reason,) = judgement.reasons
    assert " A finding needs p <= 0.01" in reason and reason.endswith(", too; that is not reached.")


def test_a_trigger_that_works_needs_the_small_p_value_of_its_own_witness():
    silent, working = evidence((0.0001, 1, 1, 1)), patch(0.9, 0.02)
    judgement = judge(
        [silent, working], NAMES, prove=lambda seen, k: tried() if seen is working else None
    )
    assert judgement.p_values[0] == pytest.approx(0.0002)
    assert judgement.verdict is Verdict.SUSPICIOUS and judgement.proven == ()


def test_a_trigger_that_works_needs_the_small_p_value_of_all_witnesses_together():
    working = replace(patch(0.9, 0.008), method="weights")
    seeing_nothing = replace(evidence((1.0, 1, 1, 1)), method="mm-bd")
    judgement = judge([working, seeing_nothing], NAMES, prove=lambda seen, k: tried())
    assert judgement.combined.corrections == (1, 1), "measured together, they do not share"
    assert 0.01 < judgement.p_values[0] <= 0.05
    assert judgement.verdict is Verdict.SUSPICIOUS and judgement.proven == ()


def test_only_what_a_witness_finds_unusual_is_tried_and_a_natural_one_does_not_decide():
    first, second, blind = patch(0.9, 0.0001), patch(0.9, 0.0002), patch(1.0, 0.9)
    asked = []

    def prove(seen, k):
        asked.append((seen, k))
        return tried(natural=0.8 if seen is first else 0.1)

    judgement = judge([first, second, blind], NAMES, prove=prove)
    assert asked == [(first, 0), (second, 0)]
    assert set(judgement.proofs) == {(0, 0), (1, 0)}
    assert judgement.verdict is Verdict.BACKDOOR_FOUND and judgement.deciding[0] == 1
    assert "natural likeness" not in judgement.reasons[0] and NATURAL in judgement.reasons[1]
