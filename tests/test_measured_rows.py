"""Several looks at the same network are one network in what the benchmarks say."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from automatic import machine_of, summary, told_too_little
from scan_power import by_attack, power


def seen(model, seed, p, *, first=3, target=3, attack="blend"):
    status = "clean" if target is None else "backdoored"
    return {
        "model": model,
        "seed": seed,
        "status": status,
        "attack": None if target is None else attack,
        "p": p,
        "first": first,
        "target": target,
    }


def test_a_network_that_is_flagged_in_one_of_two_looks_is_half_a_hit():
    looks = [
        *(seen("a", 0, 0.001), seen("a", 1, 0.2, first=1)),
        *(seen("b", 0, 0.03), seen("b", 1, 0.04)),
        *(seen("c", 0, 0.9, target=None), seen("c", 1, 0.02, target=None)),
    ]
    told = power(looks)
    assert told["backdoored"] == 2 and told["clean"] == 1 and told["seeds"] == 2
    assert told["flagged"]["value"] == told["right"]["value"] == 0.75
    assert told["at 0.01"]["value"] == 0.25
    assert told["flagged"]["count"] == 2  # networks, so the interval stays as wide as two are
    assert told["false alarms"]["at 0.05"]["value"] == 0.5
    assert told["auroc"] == pytest.approx((1.0 + 0.0) / 2)


def test_each_attack_has_its_looks_counted_also_one_that_is_never_seen():
    looks = [
        *(seen("w", 0, 0.9, first=1, attack="sig"), seen("w", 1, 0.0501, first=1, attack="sig")),
        *(seen("a", 0, 0.01), seen("a", 1, 0.0101), seen("b", 0, 0.05), seen("b", 1, 0.2, first=1)),
        *(seen("c", 0, 0.1, target=None), seen("c", 1, 0.03, target=None)),
    ]
    blend, sig = by_attack(looks)
    assert blend == {
        "attack": "blend",
        "backdoored models": 2,
        "draws of images": 2,
        "looks": 4,
        "flagged at 0.05": 3,
        "flagged at 0.01": 1,
        "class right": 3,
        "auroc": pytest.approx((1.0 + 0.5) / 2),
    }
    assert sig == {
        "attack": "sig",
        "backdoored models": 1,
        "draws of images": 2,
        "looks": 2,
        "flagged at 0.05": 0,
        "flagged at 0.01": 0,
        "class right": 0,
        "auroc": 0.0,
    }
    assert by_attack(looks[-2:]) == []
    assert by_attack(looks[:2])[0]["auroc"] is None, "no backdoor-free network to compare with"


def cleaned(model, seed, *, acc=0.9, ra=0.5, twin=None):
    rates = {"acc": {"value": acc}, "asr": {"value": 0.1}, "ra": {"value": ra}}
    return {
        "model": model,
        "half": "held-out",
        "clean images": 500,
        "precaution": False,
        "seed": seed,
        "status": "backdoored",
        "attack": "blend",
        "verdict": "suspicious",
        "first": 1,
        "target": 1,
        "processor seconds": 10.0,
        "before": {"acc": {"value": 0.95}},
        "after": rates,
        "der": 0.8,
        "kept": 0,
        "trials": [{"accuracy_drop": 0.03}],
        "twin": twin,
    }


def test_each_seed_is_a_row_and_the_twin_says_what_a_trigger_hides():
    twin = {"acc": {"value": 0.95}, "ra": {"value": 0.35}}
    rows = summary([cleaned("a", 0, twin=twin), cleaned("b", 0), cleaned("a", 1, ra=0.7)])
    assert [(row["seed"], row["backdoored"]) for row in rows] == [(0, 2), (1, 1)]
    assert rows[0]["acc less ra after"] == pytest.approx(0.4)
    assert rows[0]["acc less ra, twin"] == pytest.approx(0.6)
    assert rows[1]["acc less ra, twin"] is None
    assert rows[0]["acc drop"] == pytest.approx(0.05)
    assert rows[0]["acc drop, as told"] == pytest.approx(0.03)
    assert rows[0]["removed"] == 2 and rows[0]["der, flagged"] == pytest.approx(0.8)


def test_the_half_is_told_without_the_attack_that_a_witness_was_made_after():
    rows = summary([cleaned("a", 0), cleaned("b", 0) | {"attack": "sig", "der": 0.5}])
    assert [(row["half"], row["backdoored"], row["der"]) for row in rows] == [
        ("held-out", 2, pytest.approx(0.65)),
        ("held-out, without adap-blend, sig", 1, pytest.approx(0.8)),
    ]


def test_what_a_repair_cost_beyond_what_it_told_is_counted_over_those_kept():
    other = cleaned("b", 0, acc=0.93) | {"trials": [{"accuracy_drop": 0.04}]}
    untouched = cleaned("c", 0) | {"kept": None}
    told = told_too_little([cleaned("a", 0), other, untouched])
    assert told["repairs kept"] == 2
    assert told["acc drop beyond the told one, mean"] == pytest.approx((0.02 - 0.02) / 2)
    assert told["acc drop beyond the told one, root mean square"] == pytest.approx(0.02)


def test_a_rerun_of_a_few_runs_does_not_move_the_others_to_its_processor():
    old, new = {"model": "a"}, {"model": "b", "processor": "x with Y"}
    assert machine_of([new, new]).startswith("x with Y, one thread")
    assert machine_of([old, new, new | {"processor": "u with V"}]).startswith(
        "u with V and x with Y and others, one thread"
    )
