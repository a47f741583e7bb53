"""A benchmark that never ran: results as the harness writes them, made up from a few numbers.

The summary itself is made by ``bezoar.bench.summarise``, so that the pages are tested against what
they will get.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from bezoar.bench.grid import BenchGrid
from bezoar.bench.runs import CLEAN_TWIN, NO_DEFENSE, Plan, PlannedRun, Run, control_label
from bezoar.bench.summary import summarise
from bezoar.metrics import Rate, defense_effectiveness_interval, rate
from bezoar.pools.index import Entry

ATTACKS = (
    "bad-nets", "blend", "wanet", "signal", "trojan", "label-consistent", "input-aware", "l0-inv",
)  # fmt: skip
# label → how much of the backdoor stays, how much accuracy is lost, seconds; on average
METHODS = {
    "rnp": (0.02, 0.011, 22.0),
    "anp": (0.05, 0.016, 31.0),
    "clp": (0.09, 0.022, 0.4),
    "tac": (0.04, 0.008, 41.0),
    "bti-dbf": (0.03, 0.012, 58.0),
    "i-bau": (0.06, 0.02, 35.0),
    "nad": (0.22, 0.013, 28.0),
    "ft-sam": (0.03, 0.009, 26.0),
    "sau": (0.025, 0.014, 44.0),
    "npd": (0.07, 0.01, 39.0),
    "fst": (0.03, 0.007, 18.0),
    "ft": (0.45, 0.006, 17.0),
    "fine-pruning": (0.18, 0.031, 20.0),
    "abl:published": (0.33, 0.08, 61.0),
    "rnp:pruning.threshold=0.3,unlearning.max_epochs=20": (0.01, 0.28, 21.0),
    "neural-cleanse": (0.3, 0.012, 55.0),
}
FREE = {"dhbe": (0.12, 0.034, 71.0)}  # methods that need no image
SWEEPS = ("rnp", "anp", "clp")


def entries(attacks: Sequence[str], halves: Sequence[str]) -> list[Entry]:
    """Two backdoored models an attack, and a clean and a weak one."""
    found = []
    for half in halves:
        for attack in attacks:
            for data, network in (("cifar10", "resnet-8"), ("gtsrb", "vgg-tiny")):
                found.append(
                    Entry(
                        name=f"{data}-{network}-{attack}-{half[0]}{len(found):05x}",
                        half=half,
                        status="backdoored",
                        data=data,
                        network=network,
                        attack=attack,
                        target=3,
                        rate=0.05,
                        acc=0.87,
                        asr=0.98,
                        twin="a-twin",
                    )
                )
        found.append(
            Entry(
                name=f"cifar10-resnet-8-clean-{half[0]}",
                half=half,
                status="clean",
                data="cifar10",
                network="resnet-8",
                acc=0.88,
            )
        )
        found.append(
            Entry(
                name=f"cifar10-resnet-8-signal-weak-{half[0]}",
                half=half,
                status="weak",
                data="cifar10",
                network="resnet-8",
                attack="signal",
                target=1,
                rate=0.01,
                acc=0.88,
                asr=0.4,
                twin="a-twin",
            )
        )
    return found


def make(
    *,
    attacks: Sequence[str] = ATTACKS,
    methods: Sequence[str] = tuple(METHODS),
    images: Sequence[int] = (100, 500),
    seeds: Sequence[int] = (0, 1, 2),
    halves: Sequence[str] = ("held-out", "development"),
    controls: Sequence[int] = (5, 20, 80),
    missing: float = 0.03,
    failing: float = 0.02,
    title: str = "Ten small networks and sixteen methods",
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A summary and the records of its runs; some failed, some missing, by chance.

    The last method of the list never runs against the last attack, ``anp`` always fails on it.
    """
    drawn = random.Random(0)  # noqa: S311  # made-up numbers
    models = entries(attacks, halves)
    runs = [
        _planned(entry, label, label, "reference", 0, 0)
        for entry in models
        for label in (NO_DEFENSE, CLEAN_TWIN)
        if label == NO_DEFENSE or entry.twin
    ]
    for seed in seeds:
        for entry in models:
            runs += [_planned(entry, label, label, "method", 0, seed) for label in FREE]
            for budget in images:
                runs += [
                    _planned(entry, label, label.split(":")[0], "method", budget, seed)
                    for label in methods
                ]
                runs += [
                    _planned(entry, control_label(n), "ft", "control", budget, seed)
                    for n in controls
                ]
    records: dict[str, dict[str, Any]] = {}
    for one in runs:
        last = one.entry.attack == attacks[-1]
        if last and one.label == methods[-1]:
            continue
        if one.role != "reference" and drawn.random() < missing:
            continue
        doomed = last and one.label == "anp"
        failed = one.role != "reference" and (doomed or drawn.random() < failing)
        records[one.key] = _record(one, drawn, failed=failed)
    grid = BenchGrid(
        pool="pool", methods=tuple(methods), images=tuple(images), seeds=tuple(seeds),
        control_epochs=tuple(controls) or (1,), title=title,
    )  # fmt: skip
    plan = Plan(grid=grid, runs=tuple(runs), entries=tuple(models))
    return summarise(plan, {one.key: records.get(one.key) for one in runs}), records


def _planned(
    entry: Entry, label: str, method: str, role: Any, images: int, seed: int
) -> PlannedRun:
    settings = {} if role == "reference" else {
        "label": label,
        "pruning": {"max_drop": 0.03, "threshold": None, "grid": [0.1, 0.2, 0.3]},
        "recipe": {"epochs": 20, "learning_rate": 1e-3, "flip": False},
    }  # fmt: skip
    run = Run(
        model=entry.name,
        files={"model.toml": "ab" * 32, "weights.safetensors": "cd" * 32},
        data=entry.data,
        images_sha256="ef" * 32,
        test_images=2000,
        method={"name": method, **settings},
        images=images,
        seed=seed,
        oracle=label in SWEEPS,
    )
    return PlannedRun(run=run, label=label, role=role, entry=entry)


def _rate(share: float, count: int) -> Rate:
    return rate(round(min(max(share, 0.0), 1.0) * count), count)


def _scores(entry: Entry, acc: float, asr: float) -> dict[str, Rate]:
    scores = {"acc": _rate(acc, 2000)}
    if entry.attack:
        scores |= {"asr": _rate(asr, 1800), "ra": _rate((1 - asr) * acc, 1800)}
    return scores


def _plain(scores: dict[str, Rate]) -> dict[str, Any]:
    return {name: dict(value.as_record()) for name, value in scores.items()}


def _record(one: PlannedRun, drawn: random.Random, *, failed: bool) -> dict[str, Any]:
    entry = one.entry
    record: dict[str, Any] = {
        "kind": "bench run",
        "key": one.key,
        "config": {**_builtins(one.run)},
        "label": one.label,
        "role": one.role,
        "seed": one.run.seed,
        "needs": None if one.role == "reference" else "labelled images",
        "model": {
            "name": entry.name, "half": entry.half, "status": entry.status, "data": entry.data,
            "network": entry.network, "attack": entry.attack, "target": entry.target,
            "rate": entry.rate,
        },
        "reported": [],
        "versions": {"bezoar": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
        "machine": "x86_64",
        "executor": "LocalExecutor(workers=2, threads_per_worker=1)",
        "created": "2026-11-28T19:00:00+00:00",
    }  # fmt: skip
    if failed:
        failure = {
            "kind": "error" if drawn.random() < 0.6 else "timeout",
            "message": "rnp found no unit that it could prune in Linear(in_features=64)",
            "traceback": 'Traceback (most recent call last):\n  File "running.py", line 99\n'
            "bezoar.errors.InputError: rnp found no unit",
            "seconds": 3.2,
        }
        return record | {"state": "failed", "failure": failure}
    before = _scores(entry, entry.acc, entry.asr or 0.0)
    record |= {"state": "done", "images": {"test": 2000, "clean": one.run.images}, "device": "cpu"}
    if one.label == NO_DEFENSE:
        return record | {"after": _plain(before)}
    if one.label == CLEAN_TWIN:
        return record | {"after": _plain(_scores(entry, entry.acc + 0.004, 0.02))}
    stays, drop, seconds = (METHODS | FREE).get(one.label, (0.5, 0.005, 17.0))
    if one.role == "control":
        epochs = int(one.label.rpartition("=")[2])
        stays, drop, seconds = 0.9 / epochs**0.3, 0.01 + epochs * 2e-4, 0.8 * epochs
    if entry.attack in ("blend", "signal"):
        stays = min(1.0, 2.5 * stays)
    short = 1.6 if one.run.images == 100 else 1.0
    lost = drop * short * drawn.uniform(0.5, 1.5)
    asr = (entry.asr or 0.0) * min(1.0, stays * short * drawn.uniform(0.3, 1.7))
    after = _scores(entry, entry.acc - lost, asr)
    took = seconds * drawn.uniform(0.8, 1.2)
    record |= {
        "before": _plain(before),
        "after": _plain(after),
        "acc_drop": before["acc"].value - after["acc"].value,
        "seconds": took,
        "processor_seconds": took * 0.98,
        "peak_memory": {"bytes": 310 * 2**20, "of": "the process"},
        "decided": {
            "threshold": 0.3,
            "pruned": {"layer1.conv1": 3, "layer2.conv2": 0},
            "tried": [{"threshold": 0.1, "acc": 0.86}, {"threshold": 0.2, "acc": 0.85}],
            "flags": ["The held-out accuracy never fell; the last threshold was taken."],
            "best_epoch": None,
            "seconds": {"unlearning": 12.25, "pruning": 3.0},
        },
    }
    if entry.attack == "bad-nets" and one.label in ("nad", "ft", "rnp") and entry.data == "cifar10":
        record["reported"] = [
            {
                "method": one.label, "attack": "bad-nets", "data": "cifar10",
                "network": "WRN-16-1", "images": 2500, "acc": [0.8565, 0.8212],
                "asr": [1.0, 0.0357], "source": "README of the official repository",
            }
        ]  # fmt: skip
    if entry.attack:
        record["der"] = _der(before, after)
        if one.label in SWEEPS:
            best = _scores(entry, entry.acc - lost - 0.01, asr * 0.3)
            record["oracle"] = {
                "setting": "threshold 0.25", "after": _plain(best),
                "acc_drop": before["acc"].value - best["acc"].value, "der": _der(before, best),
            }  # fmt: skip
    return record


def _der(before: dict[str, Rate], after: dict[str, Rate]) -> dict[str, Any]:
    found = defense_effectiveness_interval(before["acc"], after["acc"], before["asr"], after["asr"])
    return dict(found.as_record())


def _builtins(run: Run) -> dict[str, Any]:
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(run)
    return found
