import pytest
import torch

from bezoar import metrics
from bezoar.errors import InputError


def test_rates_by_hand():
    # Ten images; true classes, target 0. Two are of the target class and do not count for ASR.
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 3, 3])
    clean_answers = torch.tensor([0, 1, 1, 1, 2, 0, 3, 3, 3, 2])
    stamped_labels = labels[labels != 0]
    stamped_answers = torch.tensor([0, 0, 0, 2, 0, 3, 3, 1])
    assert metrics.accuracy(clean_answers, labels).value == 0.7
    wanted = torch.zeros_like(stamped_labels)
    assert metrics.attack_success_rate(stamped_answers, wanted).value == 4 / 8
    # Of the four others, image 4 (class 2 answered 2) and two of class 3 are right.
    assert metrics.robust_accuracy(stamped_answers, stamped_labels).value == 3 / 8


def test_a_lost_accuracy_point_lowers_der_by_half_a_point():
    kept = metrics.defense_effectiveness(
        acc_before=0.9, acc_after=0.9, asr_before=1.0, asr_after=0.0
    )
    lost = metrics.defense_effectiveness(
        acc_before=0.9, acc_after=0.89, asr_before=1.0, asr_after=0.0
    )
    assert kept == 1.0
    assert kept - lost == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("acc_after", "asr_after", "der"),
    [(0.9, 1.0, 0.5), (0.95, 1.0, 0.5), (0.0, 1.0, 0.05), (0.9, 0.5, 0.75), (0.8, 0.0, 0.95)],
)
def test_der_by_hand(acc_after, asr_after, der):
    value = metrics.defense_effectiveness(
        acc_before=0.9, acc_after=acc_after, asr_before=1.0, asr_after=asr_after
    )
    assert value == pytest.approx(der)


def test_wilson_interval_equals_scipy():
    from scipy.stats import binomtest

    for successes, count in [(0, 10), (10, 10), (3, 7), (480, 500)]:
        ours = metrics.rate(successes, count)
        theirs = binomtest(successes, count).proportion_ci(method="wilson")
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
        assert ours.low <= ours.value <= ours.high


def test_a_rate_over_nothing_is_an_error():
    with pytest.raises(InputError, match="0 of 0"):
        metrics.rate(0, 0)
