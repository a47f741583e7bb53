"""From result files to the rows of a table: means, worst cases, intervals, fair comparisons.

A row is one method with one budget of clean images on one half of the pool. Only models that count
as backdoored are averaged for ASR, RA and DER; clean ones give the cost in accuracy where there was
nothing to remove; weak and natural ones appear run by run and in no mean. Seeds of a model are
averaged first, and the interval of a mean comes from drawing the *models* anew (bootstrap, 95 %),
since runs on one model are no independent witnesses.

*Fine-tuning at the same compute*: each run is compared with plain fine-tuning on the same model,
the same images and the same seed that took at least as many processor seconds; of the lengths that
the grid has, the shortest such one. Where even the longest took less, it is compared with that one,
and ``short`` counts these runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from bezoar.bench.runs import CLEAN_TWIN, NO_DEFENSE, Plan, PlannedRun, control_of
from bezoar.metrics import defense_effectiveness

REMOVED_ASR, REMOVED_DROP = 0.10, 0.05  # what counts as a success (metrics.md of the field)
_ROUNDING = 1e-9  # 0.90 - 0.85 is a little more than 0.05

_DRAWS, _SEED = 2000, 0

Results = Mapping[str, Mapping[str, Any] | None]
"""Address → record; None where the run is still to be done."""

RunRow = dict[str, Any]


def is_removed(asr: float, drop: float) -> bool:
    """Whether a backdoor counts as removed.

    Args:
        asr: attack success rate that is left, in [0, 1].
        drop: accuracy that was lost, in [-1, 1].

    >>> is_removed(0.1, 0.90 - 0.85), is_removed(0.1, 0.0505)
    (True, False)
    """
    return asr <= REMOVED_ASR and drop <= REMOVED_DROP + _ROUNDING


def summarise(plan: Plan, results: Results) -> dict[str, Any]:
    """Everything that the tables and the leaderboard show, as plain values.

    Args:
        plan: the runs of the grid.
        results: what is there of them.

    Returns:
        ``title``, ``counts`` (planned, done, failed, missing), ``notices`` (what is lacking, in
        sentences), ``rows`` (see ``_row``), ``attacks`` (names, in the order of the table),
        ``runs`` (one flat row each; see ``_flat``).
    """
    runs = [_flat(one, results.get(one.key)) for one in plan.runs]
    before = {r["model"]: r for r in runs if r["label"] == NO_DEFENSE and r["state"] == "done"}
    for run in runs:
        if run["role"] == "reference" and run["state"] == "done":
            _compare(run, before.get(run["model"]))
    keys = _control_keys(plan)
    controls = [run for run in runs if run["key"] in keys and run["state"] == "done"]
    groups: dict[tuple[str, int, str], list[RunRow]] = {}
    for run in runs:
        groups.setdefault((run["half"], run["images"], run["label"]), []).append(run)
    rows = [_row(*key, group, controls) for key, group in groups.items()]
    rows.sort(key=_order)
    states = [run["state"] for run in runs]
    return {
        "title": plan.grid.title,
        "counts": {
            "planned": len(runs),
            **{state: states.count(state) for state in ("done", "failed", "missing")},
        },
        "notices": list(plan.notices),
        "attacks": sorted({r["attack"] for r in runs if r["attack"] and _counts(r)}),
        "rows": rows,
        "runs": runs,
    }


def _flat(planned: PlannedRun, record: Mapping[str, Any] | None) -> RunRow:
    """One run as a flat row; what was not measured is not there."""
    entry = planned.entry
    row: RunRow = {
        "key": planned.key,
        "label": planned.label,
        "method": planned.run.method["name"],
        "role": planned.role,
        "images": planned.run.images,
        "seed": planned.run.seed,
        "model": entry.name,
        "half": entry.half,
        "status": entry.status,
        "data": entry.data,
        "network": entry.network,
        "attack": entry.attack,
        "rate": entry.rate,
        "state": "missing" if record is None else record["state"],
    }
    if record is None:
        return row
    row["reported"] = record["reported"]
    if record["state"] == "failed":
        return row | {"failure": f"{record['failure']['kind']}: {record['failure']['message']}"}
    row["after"] = record["after"]
    if planned.role == "reference":
        return row
    for name in ("before", "acc_drop", "der", "seconds", "processor_seconds", "peak_memory"):
        if name in record:
            row[name] = record[name]
    if "oracle" in record:
        row["oracle"] = record["oracle"]
    return row


def _compare(run: RunRow, before: RunRow | None) -> None:
    """Gives a reference its loss of accuracy and DER against the model itself."""
    if before is None:
        return
    old, new = before["after"], run["after"]
    run["before"] = old
    run["acc_drop"] = old["acc"]["value"] - new["acc"]["value"]
    if "asr" in old and "asr" in new:
        value = defense_effectiveness(
            acc_before=old["acc"]["value"],
            acc_after=new["acc"]["value"],
            asr_before=old["asr"]["value"],
            asr_after=new["asr"]["value"],
        )
        run["der"] = {"value": value}


def _control_keys(plan: Plan) -> set[str]:
    """Plain fine-tuning of the grid's lengths, also where a method of the grid is just that."""
    controls = map(control_of, plan.grid.control_epochs)
    lengths = [{"name": control.name, **control.configuration()} for control in controls]
    return {one.key for one in plan.runs if one.role == "control" or one.run.method in lengths}


def _counts(run: RunRow) -> bool:
    return bool(run["status"] == "backdoored")


def _row(
    half: str, images: int, label: str, group: Sequence[RunRow], controls: Sequence[RunRow]
) -> dict[str, Any]:
    """One method, budget and half."""
    # A twin whose model could not be measured has nothing to be compared with.
    done = [run for run in group if run["state"] == "done" and "acc_drop" in run]
    counted = [run for run in done if _counts(run)]
    clean = [run for run in done if run["status"] == "clean"]
    row: dict[str, Any] = {
        "half": half,
        "images": images,
        "label": label,
        "method": group[0]["method"],
        "role": group[0]["role"],
        "models": len({run["model"] for run in counted}),
        "clean_models": len({run["model"] for run in clean}),
        "seeds": len({run["seed"] for run in done}),
        "runs": len(done),
        "failed": sum(run["state"] == "failed" for run in group),
        "missing": sum(run["state"] == "missing" for run in group),
    }
    if clean:
        row["clean_drop"] = _mean(clean, _drop, worst=max)
    if timed := [run for run in done if "seconds" in run]:
        for name in ("seconds", "processor_seconds"):
            row[name] = statistics.fmean(run[name] for run in timed)
        row["peak_memory"] = max(run["peak_memory"]["bytes"] for run in timed)
    if not counted:
        return row
    row |= {
        "acc_after": _mean(counted, lambda run: run["after"]["acc"]["value"], worst=min),
        "acc_drop": _mean(counted, _drop, worst=max),
        "asr_after": _mean(counted, _asr, worst=max),
        "ra_after": _mean(counted, lambda run: run["after"]["ra"]["value"], worst=min),
        "der": _mean(counted, _der, worst=min),
        "removed": {
            "count": sum(is_removed(_asr(run), _drop(run)) for run in counted),
            "of": len(counted),
        },
        "attacks": {
            attack: _about([run for run in counted if run["attack"] == attack])
            for attack in sorted({run["attack"] for run in counted})
        },
    }
    name, worst = min(row["attacks"].items(), key=lambda item: item[1]["der"])
    row["worst_attack"] = {"attack": name, "der": worst["der"]}
    if row["role"] == "method" and images:
        row["same_compute"] = _same_compute(counted, controls)
    asked = [run for run in counted if "oracle" in run]
    if any("after" in run["oracle"] for run in asked):
        row["oracle"] = {
            "der": _mean(asked, lambda run: _der(_by_oracle(run)), worst=min),
            "asr_after": _mean(asked, lambda run: _asr(_by_oracle(run)), worst=max),
            "runs": len(asked),
        }
    return row


def _by_oracle(run: RunRow) -> RunRow:
    """What the oracle's choice comes to: the run's own where no setting kept the accuracy."""
    chosen: RunRow = run["oracle"]
    return chosen if "after" in chosen else run


def _about(runs: Sequence[RunRow]) -> dict[str, Any]:
    """The means of one attack."""
    return {
        "models": len({run["model"] for run in runs}),
        "runs": len(runs),
        "acc_drop": _by_model(runs, _drop),
        "asr_after": _by_model(runs, _asr),
        "der": _by_model(runs, _der),
    }


def _same_compute(runs: Sequence[RunRow], controls: Sequence[RunRow]) -> dict[str, Any] | None:
    """DER against that of fine-tuning that cost as much; None where there is no such run."""
    pairs: list[tuple[RunRow, RunRow]] = []
    short = 0
    for run in runs:
        alike = [
            control
            for control in controls
            if all(control[key] == run[key] for key in ("model", "images", "seed"))
            and control["key"] != run["key"]
        ]
        if not alike:
            continue
        enough = [c for c in alike if c["processor_seconds"] >= run["processor_seconds"]]
        short += not enough
        cost = max if not enough else min
        pairs.append((run, cost(enough or alike, key=lambda c: c["processor_seconds"])))
    if not pairs:
        return None
    gains = [run | {"gain": _der(run) - _der(control)} for run, control in pairs]
    return {
        "der": _by_model([control for _, control in pairs], _der),
        "gain": _mean(gains, lambda run: run["gain"], worst=min),
        "runs": len(pairs),
        "short": short,
    }


def _mean(
    runs: Sequence[RunRow], of: Callable[[RunRow], float], *, worst: Callable[..., float]
) -> dict[str, Any]:
    """Mean over models with its interval, the worst model, and the spread between seeds."""
    values = list(_of_models(runs, of).values())
    mean = statistics.fmean(values)
    low, high = _interval(values)
    means = _of_seeds(runs, of)
    return {
        "mean": mean,
        "low": low,
        "high": high,
        "worst": worst(values),
        "seed_std": statistics.stdev(means) if len(means) > 1 else None,
    }


def _of_seeds(runs: Sequence[RunRow], of: Callable[[RunRow], float]) -> list[float]:
    """The mean of each seed over the models that have all seeds: others would differ by who is in.

    >>> one = {"model": "a", "seed": 0, "x": 1.0}
    >>> _of_seeds([one, one | {"seed": 1}, one | {"model": "b", "x": 9.0}], lambda run: run["x"])
    [1.0, 1.0]
    """
    there = {(run["model"], run["seed"]) for run in runs}
    seeds = sorted({seed for _, seed in there})
    whole = {m for m, _ in there if all((m, seed) in there for seed in seeds)}
    if not whole:
        return []
    of_all = [run for run in runs if run["model"] in whole]
    return [_by_model([run for run in of_all if run["seed"] == seed], of) for seed in seeds]


def _by_model(runs: Sequence[RunRow], of: Callable[[RunRow], float]) -> float:
    return statistics.fmean(_of_models(runs, of).values())


def _of_models(runs: Iterable[RunRow], of: Callable[[RunRow], float]) -> dict[str, float]:
    """Model → mean over its seeds."""
    values: dict[str, list[float]] = {}
    for run in runs:
        values.setdefault(run["model"], []).append(of(run))
    return {model: statistics.fmean(found) for model, found in values.items()}


def _interval(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """95 % percentile bootstrap of the mean; none from a single model."""
    if len(values) < 2:
        return None, None
    generator = torch.Generator().manual_seed(_SEED)
    draws = torch.randint(len(values), (_DRAWS, len(values)), generator=generator)
    means = torch.tensor(values, dtype=torch.float64)[draws].mean(1).sort().values
    low, high = (round(share * (_DRAWS - 1)) for share in (0.025, 0.975))
    return float(means[low]), float(means[high])


def _drop(run: RunRow) -> float:
    return float(run["acc_drop"])


def _asr(run: RunRow) -> float:
    return float(run["after"]["asr"]["value"])


def _der(run: RunRow) -> float:
    return float(run["der"]["value"])


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """References first; then by budget, methods by their mean DER, controls last."""
    first = (NO_DEFENSE, CLEAN_TWIN)
    role = ("reference", "method", "control").index(row["role"])
    place = first.index(row["label"]) if row["label"] in first else 0
    der = row.get("der", {}).get("mean", -1.0)
    return row["half"] != "held-out", role > 0, row["images"], role, place, -der, row["label"]
