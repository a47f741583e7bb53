"""Means, worst cases and comparisons against numbers worked out by hand."""

import csv
import io

import msgspec
import pytest

from bezoar.bench.grid import BenchGrid
from bezoar.bench.runs import CLEAN_TWIN, NO_DEFENSE, Plan, PlannedRun, Run, control_of
from bezoar.bench.summary import summarise
from bezoar.bench.table import comma_separated, markdown
from bezoar.pools import Entry

GRID = BenchGrid(pool="x", methods=("rnp", "clp"), images=(100,), seeds=(0, 1))


def entry(name, attack, status="backdoored", half="held-out"):
    return Entry(
        name=name, half=half, status=status, data="digits", network="n", attack=attack, acc=0.9
    )


ONE, TWO = entry("one", "blend"), entry("two", "wanet")
CLEAN, WEAK = entry("clean", None, "clean"), entry("weak", "sig", "weak")


def planned(entry, label, seed=0, images=100, role="method"):
    run = Run(
        model=entry.name,
        files={},
        data="digits",
        images_sha256="",
        test_images=10,
        method={"name": label.partition(":")[0]},
        images=images,
        seed=seed,
        public=label,  # only so that labels differ in their address
    )
    return PlannedRun(run=run, label=label, role=role, entry=entry)


def rate(value):
    return {"value": value, "low": max(0, value - 0.1), "high": min(1, value + 0.1), "count": 100}


def record(acc, asr=None, *, before=(0.9, 1.0), seconds=1.0, failed=None, **more):
    if failed:
        failure = {"kind": "crash", "message": failed, "traceback": "", "seconds": 1}
        return {"state": "failed", "failure": failure, "reported": []}
    after = {"acc": rate(acc)}
    if asr is not None:
        after |= {"asr": rate(asr), "ra": rate(1 - asr)}
    der = {"der": rate((before[1] - asr - (before[0] - acc) + 1) / 2)} if asr is not None else {}
    return {
        "state": "done",
        "reported": [],
        "before": {"acc": rate(before[0]), "asr": rate(before[1])},
        "after": after,
        "acc_drop": before[0] - acc,
        "seconds": seconds,
        "processor_seconds": seconds,
        "peak_memory": {"bytes": 7 << 20, "of": "process"},
        **der,
        **more,
    }


def reference(acc, asr):
    after = {"acc": rate(acc), "asr": rate(asr), "ra": rate(1 - asr)}
    return {"state": "done", "reported": [], "after": after}


CASES = [
    (planned(ONE, NO_DEFENSE, images=0, role="reference"), reference(0.9, 1.0)),
    (planned(ONE, CLEAN_TWIN, images=0, role="reference"), reference(0.92, 0.1)),
    (planned(ONE, "rnp"), record(0.86, 0.2, seconds=10)),
    (planned(ONE, "rnp", seed=1), record(0.88, 0.0, seconds=10)),
    (planned(TWO, "rnp"), record(0.80, 0.5, seconds=10)),
    (planned(TWO, "rnp", seed=1), record(0, failed="out of memory")),
    (planned(CLEAN, "rnp"), record(0.87)),
    (planned(WEAK, "rnp"), record(0.1, 0.0)),
    (planned(ONE, "clp", images=0), None),
    (planned(ONE, "ft:recipe.epochs=5", role="control"), record(0.89, 0.8, seconds=4)),
    (planned(ONE, "ft:recipe.epochs=20", role="control"), record(0.88, 0.7, seconds=16)),
    (planned(ONE, "ft:recipe.epochs=80", role="control"), record(0.85, 0.5, seconds=60)),
    (planned(TWO, "ft:recipe.epochs=5", role="control"), record(0.85, 0.9, seconds=4)),
]


@pytest.fixture
def summary():
    plan = Plan(grid=GRID, runs=tuple(one for one, _ in CASES), entries=(ONE, TWO, CLEAN, WEAK))
    return summarise(plan, {one.key: record for one, record in CASES})


@pytest.fixture
def rows(summary):
    return {row["label"]: row for row in summary["rows"]}


def test_seeds_are_averaged_before_models(rows):
    row = rows["rnp"]
    # one: 0.2 and 0.0 -> 0.1; two: 0.5. Averaging runs would give 0.233.
    assert row["asr_after"]["mean"] == pytest.approx(0.3)
    assert row["acc_drop"]["mean"] == pytest.approx((0.03 + 0.10) / 2)
    assert row["asr_after"]["worst"] == pytest.approx(0.5)
    assert (row["models"], row["runs"], row["failed"], row["missing"]) == (2, 5, 1, 0)


def test_the_worst_attack_is_that_of_the_lowest_mean(rows):
    der_two = (1.0 - 0.5 - 0.10 + 1) / 2
    assert rows["rnp"]["worst_attack"] == {"attack": "wanet", "der": pytest.approx(der_two)}


def test_weak_models_are_in_no_mean_and_clean_ones_apart(rows, summary):
    assert "sig" not in rows["rnp"]["attacks"]
    assert rows["rnp"]["clean_drop"]["mean"] == pytest.approx(0.03)
    assert summary["attacks"] == ["blend", "wanet"]


def test_references_are_measured_against_the_model_itself(rows):
    assert rows[NO_DEFENSE]["der"]["mean"] == 0.5
    assert rows[CLEAN_TWIN]["der"]["mean"] == pytest.approx((0.9 + 1) / 2), "gains do not count"


def test_successes_are_counted_by_run(rows):
    assert rows["rnp"]["removed"] == {"count": 1, "of": 3}


def test_each_run_is_compared_with_fine_tuning_that_cost_as_much(rows):
    compared = rows["rnp"]["same_compute"]
    # Seed 0 of "one" took 10 s: the shortest control with at least that is 20 epochs (16 s). Of
    # "two" there is only one of 4 s. Seed 1 has no controls.
    ft_one, ft_two = (0.3 - 0.02 + 1) / 2, (0.1 - 0.05 + 1) / 2
    assert compared["der"] == pytest.approx((ft_one + ft_two) / 2)
    mine_one, mine_two = (0.8 - 0.04 + 1) / 2, (0.5 - 0.10 + 1) / 2
    gain = (mine_one - ft_one + mine_two - ft_two) / 2
    assert compared["gain"]["mean"] == pytest.approx(gain)
    assert (compared["runs"], compared["short"]) == (2, 1)


def test_nothing_is_compared_that_was_not_run(rows):
    assert "same_compute" not in rows["ft:recipe.epochs=5"]
    assert "der" not in rows["clp"] and rows["clp"]["missing"] == 1


def test_the_spread_between_seeds_is_that_of_the_means(rows):
    # "one" alone has both seeds: 0.2 and 0.0
    assert rows["rnp"]["asr_after"]["seed_std"] == pytest.approx(0.2 / 2**0.5)


def test_the_interval_of_a_mean_is_over_models(rows):
    asr = rows["rnp"]["asr_after"]
    assert (asr["low"], asr["high"]) == (pytest.approx(0.1), pytest.approx(0.5))
    alone = rows[NO_DEFENSE]["asr_after"]
    assert alone["low"] is None and alone["high"] is None, "one model has no spread"


def test_rows_come_references_first_then_by_der(summary):
    labels = [row["label"] for row in summary["rows"]]
    assert labels[:2] == [NO_DEFENSE, CLEAN_TWIN]
    assert labels.index("rnp") < labels.index("ft:recipe.epochs=5")


def test_markdown_has_no_blank_cell_and_names_what_failed(summary):
    text = markdown(summary)
    cells = [c for line in text.splitlines() if line.startswith("|") for c in line[1:-1].split("|")]
    assert cells and all(cell.strip() for cell in cells)
    assert "out of memory" in text and "1 failed, 1 are still to be done" in text
    assert "-1" not in cells and "nan" not in text.lower()


def test_weak_models_do_not_stand_beside_published_results():
    reported = [
        {"acc": [0.9, 0.8], "asr": [1.0, 0.1], "network": "n", "images": 100, "source": "its paper"}
    ]
    runs = [planned(ONE, "rnp"), planned(WEAK, "rnp")]
    plan = Plan(grid=GRID, runs=tuple(runs), entries=(ONE, WEAK))
    results = {one.key: record(0.86, 0.2) | {"reported": reported} for one in runs}
    _, beside = markdown(summarise(plan, results)).split("## Beside published results")
    assert beside.count("its paper") == beside.count("seed 0, one") == 1


def test_csv_has_a_line_for_each_run(summary):
    lines = list(csv.DictReader(io.StringIO(comma_separated(summary))))
    assert len(lines) == len(CASES)
    (first,) = (line for line in lines if line["model"] == "one" and line["label"] == "clp")
    assert first["state"] == "missing" and first["after_asr_value"] == ""
    (other,) = (x for x in lines if x["label"] == "rnp" and (x["model"], x["seed"]) == ("two", "0"))
    assert float(other["after_asr_value"]) == 0.5


def test_the_csv_computes_nothing(summary):
    runs = [run | {"model": "=1+1"} for run in summary["runs"]]
    lines = list(csv.DictReader(io.StringIO(comma_separated(summary | {"runs": runs}))))
    assert {line["model"] for line in lines} == {"'=1+1"}
    gains = [run["acc_drop"] for run in runs if run.get("acc_drop", 0) < 0]
    assert gains and {f"{gain}" for gain in gains} <= {line["acc_drop"] for line in lines}


def test_a_loss_of_exactly_five_points_is_not_too_much():
    one = planned(ONE, "rnp")
    plan = Plan(grid=GRID, runs=(one,), entries=(ONE,))
    for after, count in ((0.85, 1), (0.8495, 0)):  # 0.9 - 0.85 > 0.05 in binary
        (row,) = summarise(plan, {one.key: record(after, 0.05)})["rows"]
        assert row["removed"]["count"] == count


def test_the_spread_between_seeds_compares_the_same_models():
    """Half a grid: one model has both seeds with the same outcome, the other only the first."""
    runs = [planned(ONE, "rnp", 0), planned(ONE, "rnp", 1), planned(TWO, "rnp", 0)]
    plan = Plan(grid=GRID, runs=tuple(runs), entries=(ONE, TWO))
    results = {one.key: record(0.9, asr) for one, asr in zip(runs, (0.0, 0.0, 0.9), strict=True)}
    (row,) = summarise(plan, results)["rows"]
    assert row["der"]["seed_std"] == pytest.approx(0.0)


def test_a_method_that_is_a_control_by_another_name_stays_one():
    """A run has one address, and the method comes first."""
    plain = control_of(20)
    ft = planned(ONE, "ft")
    run = msgspec.structs.replace(
        ft.run, method={"name": "ft", **plain.configuration()}, public=None
    )
    ft, anp = msgspec.structs.replace(ft, run=run), planned(ONE, "anp")
    plan = Plan(grid=GRID, runs=(ft, anp), entries=(ONE,))
    results = {ft.key: record(0.88, 0.7, seconds=16), anp.key: record(0.86, 0.2, seconds=10)}
    rows = {row["label"]: row for row in summarise(plan, results)["rows"]}
    assert rows["anp"]["same_compute"]["der"] == pytest.approx((0.3 - 0.02 + 1) / 2)


def test_where_no_setting_kept_the_accuracy_the_oracle_has_the_method_s_own():
    good = {"setting": "t=0.5", "after": {"asr": rate(0.0)}, "der": rate(0.95)}
    none = {"setting": None, "reason": "every setting costs a tenth of the accuracy or more"}
    one, two = planned(ONE, "anp"), planned(TWO, "anp")
    plan = Plan(grid=GRID, runs=(one, two), entries=(ONE, TWO))
    results = {
        one.key: record(0.86, 0.4, oracle=good),
        two.key: record(0.7, 0.8, oracle=none),
    }
    (row,) = summarise(plan, results)["rows"]
    own = (0.2 - 0.2 + 1) / 2
    assert row["oracle"]["der"]["mean"] == pytest.approx((0.95 + own) / 2)
    assert row["oracle"]["asr_after"]["mean"] == pytest.approx(0.4)
    assert row["oracle"]["runs"] == 2
    (row,) = summarise(plan, {two.key: results[two.key]})["rows"]
    assert "oracle" not in row


def test_the_oracle_has_columns_of_its_own():
    oracle = {"setting": "t=0.5", "after": {"asr": rate(0.0)}, "der": rate(0.95)}
    one = planned(ONE, "anp")
    plan = Plan(grid=GRID, runs=(one,), entries=(ONE,))
    (row,) = summarise(plan, {one.key: record(0.86, 0.4, oracle=oracle)})["rows"]
    assert row["oracle"]["der"]["mean"] == pytest.approx(0.95)
    assert row["der"]["mean"] == pytest.approx((0.6 - 0.04 + 1) / 2), "it changes no result"
