"""One p-value from several witnesses, against plain computations and closed forms."""

import numpy as np
import pytest

from bezoar import combining
from bezoar.combining import combine, null_smallest, smallest_of, tail_factor
from bezoar.methods import TAC, Evidence, methods
from bezoar.packaged import packaged
from bezoar.statistics import harmonic_mean

ALL = ("bti-dbf", "neural-cleanse", "rnp", "tac")


def evidence(method, p_values, **configuration):
    default = methods.get(method)().configuration() if method in methods.names() else {}
    blank = (0.0,) * len(p_values)
    record = {"configuration": default | configuration}
    return Evidence(method, "Nothing", blank, blank, tuple(p_values), "none", record=record)


def test_one_witness_keeps_its_p_values():
    combined = combine([evidence("tac", (0.03, 1.0, 0.2))])
    assert combined.p_values == (0.03, 1.0, 0.2) and combined.factor is None


def test_a_witness_that_networks_without_a_backdoor_contradict_is_corrected_alone_and_with_others():
    """On 200 classes ten networks give MM-BD p-values down to 0.0001."""
    quiet = (1.0,) * 199
    (factor,) = combine([evidence("mm-bd", (1e-4, *quiet))]).corrections
    assert factor == tail_factor(null_smallest(("mm-bd",), many=True)) and factor > 100
    alone = combine([evidence("mm-bd", (1e-6, *quiet))])
    assert alone.p_values[0] == pytest.approx(factor * 1e-6) and alone.contradicted == ("mm-bd",)
    assert "those of mm-bd are multiplied by what networks without" in alone.in_words()
    assert alone.correction_in_words(0).startswith(f", times {factor:.3g} for what networks")
    both = combine([evidence("mm-bd", (1e-6, *quiet)), evidence("hand", (1.0, *quiet))])
    assert both.corrections == pytest.approx((2 * factor, 2.0))
    assert both.p_values[0] == pytest.approx(2 * factor * 1e-6)


def test_a_contradicted_witness_proves_nothing_by_itself_with_the_uncorrected_p_value():
    """The factor of all bears with Neural Cleanse on 200 classes; one witness alone must, too."""
    quiet = (1.0,) * 199
    names = ("tac", "bti-dbf", "rnp", "neural-cleanse", "weights")
    seen = [evidence(name, (0.004, *quiet)) for name in names]
    combined = combine(seen)
    assert combined.factor is not None
    (alone,) = combine([seen[3]]).corrections
    assert alone > 10 and combined.corrections == (1.0, 1.0, 1.0, alone, 1.0)
    assert combined.correction_in_words(3).startswith(f", times {alone:.3g} for what networks")


def test_a_witness_that_is_not_contradicted_or_was_not_measured_keeps_its_p_values():
    few, many = (0.03, *[1.0] * 9), (0.03, *[1.0] * 199)
    for seen in (
        evidence("mm-bd", few),
        evidence("weights", many),
        evidence("hand", many),
        evidence("mm-bd", many, steps=7),
    ):
        assert combine([seen]).p_values[0] == 0.03 and not combine([seen]).contradicted


def test_witnesses_that_were_not_measured_together_share_the_level():
    combined = combine([evidence("tac", (0.03, 1.0)), evidence("hand", (0.5, 0.4))])
    assert combined.factor is None
    assert combined.p_values == pytest.approx((0.06, 0.8))


def test_the_same_witness_twice_was_not_measured():
    assert null_smallest(("tac", "tac"), many=False) == ()


def test_another_setting_was_not_measured_and_one_that_changes_no_p_value_was():
    seen = [evidence(name, (0.02, 1.0)) for name in ALL]
    assert combine(seen).factor is not None
    changed = [*seen[:-1], evidence("tac", (0.02, 1.0), quantile=None)]
    assert combine(changed).factor is None
    harmless = [*seen[:-1], evidence("tac", (0.02, 1.0), target_class=3)]
    assert combine(harmless).factor == combine(seen).factor


@pytest.mark.parametrize(("some", "measured"), [(4, False), (10, True), (11, False)])
def test_some_classes_were_measured_where_they_are_as_many_as_a_scan_chooses(some, measured):
    blank = (1.0,) * 43
    found = evidence("neural-cleanse", blank, classes=list(range(some)))
    assert (combine([evidence("tac", blank), found]).factor is not None) == measured


def test_the_combination_is_the_harmonic_mean_times_the_factor():
    rows = [(0.01, 1.0, 0.5), (0.02, 0.3, 0.5), (0.05, 1.0, 0.5), (1.0, 1.0, 0.5)]
    combined = combine([evidence(n, r) for n, r in zip(ALL, rows, strict=True)])
    for k in range(3):
        plain = 4 / sum(1 / row[k] for row in rows)
        assert combined.p_values[k] == pytest.approx(min(1.0, combined.factor * plain))


def test_agreement_counts_for_more_than_one_sure_witness_and_one_alone_is_bonferroni():
    alone = harmonic_mean([1e-4, 1.0, 1.0, 1.0])
    assert alone == pytest.approx(4e-4, rel=1e-3)
    assert harmonic_mean([1e-4] * 4) == pytest.approx(1e-4)
    assert 0 < harmonic_mean([0.0, 1.0]) < 1e-11


def test_the_factor_makes_the_tail_of_its_own_networks_hold():
    rng = np.random.default_rng(0)
    found = (rng.random(80) ** 1.5).tolist()  # too small too often
    factor = tail_factor(found)
    assert factor > 1
    for level in (0.02, 0.05, 0.1, 0.19):
        reached = sum(factor * h <= level * (1 - 1e-12) for h in found)
        assert reached / 81 <= level


def test_uniform_p_values_need_no_factor_and_one_freak_needs_a_large_one():
    assert tail_factor([i / 101 for i in range(1, 101)]) == pytest.approx(1.0)
    assert tail_factor([1e-6] + [0.5] * 59) == pytest.approx(1e6 / 61)


def test_the_smallest_over_classes_is_taken_with_missing_ones_as_one():
    p_values = {"a": {"0": 0.1}, "b": {"0": 0.2, "3": 0.01}}
    plain = min(
        2 / (1 / p_values["a"].get(str(k), 1.0) + 1 / p_values["b"].get(str(k), 1.0))
        for k in range(5)
    )
    assert smallest_of(p_values, ("a", "b"), 5) == pytest.approx(plain)


def test_who_could_not_look_at_a_network_is_left_out_there_as_in_a_scan(monkeypatch):
    looked = {"a": {"0": 0.1}, "b": {"0": 0.3}}
    networks = (
        {"classes": 5, "p": looked, "could not look": []},
        {"classes": 5, "p": {"a": {"2": 0.2}}, "could not look": ["b"]},
        {"classes": 5, "p": {"b": {}}, "could not look": ["c"]},
    )
    monkeypatch.setattr(combining, "_networks", lambda: networks)
    get = null_smallest.__wrapped__
    assert get(("a", "b"), many=False) == pytest.approx((2 / (10 + 1 / 0.3), 0.2))
    assert get(("b",), many=False) == (0.3, 1.0), "one network says nothing of it"
    assert get(("b", "c"), many=False) == (), "c looked at none"


def test_the_stored_null_holds_networks_of_every_number_of_classes():
    null = packaged(combining.NULL)
    assert null["version"] >= 1
    assert {network["classes"] for network in null["networks"]} >= {10, 12, 43, 200}
    assert len(null_smallest(ALL, many=False)) >= 40
    assert all(0 < h <= 1 for h in null_smallest(ALL, many=False))


def test_the_sentence_names_factor_and_networks():
    words = combine([evidence(name, (0.02, 1.0)) for name in ALL]).in_words()
    assert "harmonic mean" in words and f"{len(null_smallest(ALL, many=False))} networks" in words
    assert "corrected for the number of classes" in combine([evidence("tac", (1, 1))]).in_words()
    assert TAC.name in ALL
