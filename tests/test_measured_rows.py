"""Several looks at the same network are one network in what the benchmarks say."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from automatic import entered, summary, told_too_little, tuned
from fresh_networks import false_alarms
from fresh_networks import summary as summary_of_fresh
from fresh_networks import tasks as fresh_tasks
from result_file import machine_of
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
    assert machine_of([new, new], "one thread") == "x with Y, one thread"
    told = machine_of([old, new, new | {"processor": "u with V"}], "one thread")
    assert told == "u with V and x with Y and others, one thread"


def fresh(task, p, *, acc=0.9, other=False, blind=1.0):
    classes = {"digits": 10, "cifar10": 10, "pairs": 200}[task]
    found = {"verdict": "suspicious" if p <= 0.05 else "nothing found", "p": p}
    facts = {"task": task, "classes": classes, "acc": acc, "other": other}
    return facts | found | {"without images": {"verdict": "nothing found", "p": blind}}


def test_alarms_of_fresh_networks_are_counted_by_classes_and_who_learned_nothing_is_not():
    runs = [
        *(fresh("digits", 0.05), fresh("digits", 0.009, other=True), fresh("cifar10", 0.0501)),
        *(fresh("cifar10", 0.001, acc=0.49), fresh("pairs", 1.0, blind=0.02)),
        {"task": "pairs", "classes": 200, "acc": 0.9, "other": False, "refused": "no image"},
    ]
    told = false_alarms(runs, images=True)
    assert list(told) == ["10", "200", "all"]
    assert (told["10"]["at 0.05"]["value"], told["10"]["at 0.05"]["count"]) == (2 / 3, 3)
    assert told["10"]["at 0.01"]["value"] == 1 / 3
    assert told["200"]["at 0.05"]["value"] == 0 and told["all"]["at 0.05"]["value"] == 0.5
    assert false_alarms(runs, images=False)["all"]["at 0.05"]["value"] == 0.25
    assert false_alarms(runs, images=True, small=True)["10"]["at 0.05"]["value"] == 1.0
    digits, others, pairs, photographs = summary_of_fresh(runs)
    assert [row["kinds"] for row in (digits, others)] == ["of the null", "others"]
    assert photographs["not learned"] == 1 and photographs["smallest p"] == 0.0501
    assert pairs["false alarms at 0.05, no images"]["value"] == 1.0 and pairs["refused"] == 1


def test_fresh_networks_take_turns_and_what_is_done_is_not_done_again():
    from fresh_networks import FIRST, NETWORKS, Options

    everything = list(fresh_tasks(Options(), {}))
    assert len(everything) == sum(NETWORKS.values())
    assert {task.key.split()[0] for task in everything[:8]} == set(NETWORKS)
    rest = list(fresh_tasks(Options(), {f"digits {FIRST}": {}}))
    assert {task.key for task in everything} - {task.key for task in rest} == {f"digits {FIRST}"}


def probed(model, before, after, asr):
    probe = None if before is None else {"before": before, "after": after}
    run = cleaned(model, 0) | {"set": "pool", "kept": 0, "aftercare": {"probe": probe}}
    return run | {"after": {"asr": {"value": asr}}}


def test_dead_triggers_that_tuning_brings_back_in_part_are_counted_with_what_the_true_one_does():
    runs = [
        *(probed("a", 0.1, 0.2, 0.03), probed("b", 0.0, 0.1, 0.5), probed("c", 0.0, 0.29, 0.01)),
        *(probed("d", 0.0, 0.4, 0.9), probed("e", 0.11, 0.2, 0.9), probed("f", 0.0, None, 0.9)),
        *(probed("g", None, None, 0.9), probed("h", 0.0, 0.2, 0.9) | {"precaution": True}),
    ]
    assert tuned(runs) == {
        "repairs that left triggers dead": 4,
        "back with tuning": 1,
        "in part back": 2,
        "asr of these": [0.01, 0.03],
    }


def test_a_run_takes_the_place_of_its_own_kind_alone():
    first, second = (probed(name, 0.0, 0.0, 0.1) for name in "ab")
    again = probed("a", 0.0, 0.0, 0.7)
    others = [again | {"seed": 1}, again | {"precaution": True}, again | {"clean images": 0}]
    assert entered([first, second], [again, *others]) == [again, second, *others]
