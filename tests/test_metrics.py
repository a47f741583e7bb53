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


def test_auroc_and_tpr_equal_brute_force():
    generator = torch.Generator().manual_seed(0)
    for size in (1, 7, 40):
        positive = torch.randint(0, 12, (size,), generator=generator).double() + 2
        negative = torch.randint(0, 12, (53,), generator=generator).double()
        pairs = [(p > n) + 0.5 * (p == n) for p in positive.tolist() for n in negative.tolist()]
        assert metrics.auroc(positive, negative) == pytest.approx(sum(pairs) / len(pairs))
        for level in (0.0, 0.01, 0.05, 0.3):
            best = max(
                (positive > t).double().mean().item()
                for t in [*negative.tolist(), *positive.tolist()]
                if (negative > t).double().mean().item() <= level
            )
            assert metrics.tpr_at_fpr(positive, negative, level) == pytest.approx(best)


def test_a_constant_score_has_an_auroc_of_one_half_and_finds_nothing():
    same = torch.zeros(5)
    assert metrics.auroc(same, same) == 0.5
    assert metrics.tpr_at_fpr(same, same, 0.9) == 0.0
    assert metrics.auroc(same + 1, same) == 1.0 and metrics.auroc(same - 1, same) == 0.0


@pytest.mark.parametrize("bad", [torch.zeros(0), torch.tensor([1.0, float("nan")])])
def test_scores_that_are_missing_are_an_error(bad):
    for first, second in ((bad, torch.zeros(2)), (torch.zeros(2), bad)):
        with pytest.raises(InputError, match="missing or NaN"):
            metrics.auroc(first, second)
        with pytest.raises(InputError, match="missing or NaN"):
            metrics.tpr_at_fpr(first, second, 0.1)


def test_a_false_positive_rate_of_one_is_refused():
    with pytest.raises(InputError, match="outside"):
        metrics.tpr_at_fpr(torch.zeros(2), torch.zeros(2), 1.0)


def test_the_interval_of_a_fall_is_newcombe_s():
    # Newcombe 1998, table II, row (a): 56/70 against 48/80, method 10: 0.0524 to 0.3339
    fell = metrics.fall(metrics.rate(56, 70), metrics.rate(48, 80))
    assert fell.value == pytest.approx(0.2)
    assert (round(fell.low, 4), round(fell.high, 4)) == (0.0524, 0.3339)


def test_der_s_interval_holds_it_and_narrows_with_more_images():
    def der(n):
        acc, acc_after = metrics.rate(9 * n, 10 * n), metrics.rate(8 * n, 10 * n)
        asr, asr_after = metrics.rate(10 * n, 10 * n), metrics.rate(n, 10 * n)
        return metrics.defense_effectiveness_interval(acc, acc_after, asr, asr_after)

    few, many = der(10), der(1000)
    assert few.value == pytest.approx((0.9 - 0.1 + 1) / 2)
    assert few.low < many.low < many.value < many.high < few.high


def test_der_s_interval_knows_that_gains_in_accuracy_do_not_count():
    better = metrics.defense_effectiveness_interval(
        metrics.rate(80, 100), metrics.rate(90, 100), metrics.rate(50, 100), metrics.rate(50, 100)
    )
    assert better.value == 0.5
    assert better.low >= 0.45, "an accuracy that rose for certain cannot lower DER by its noise"
