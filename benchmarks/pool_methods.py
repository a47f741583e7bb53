"""Repairs the models of a pool with some hundred clean images and measures what is left.

    BEZOAR_DATA=... python benchmarks/pool_methods.py [--methods rnp] [--half held-out]

The clean images and the test images come from two fixed parts of the data set's test file, so every
model and seed is measured on the same images, and no repair saw one of them. Settings were chosen
on the development half only. Each run is written to ``results/pool_methods.json`` at once, and a
rerun does only what is missing. An ASR means little without the clean twin's under the same
trigger, which stands beside it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from result_file import result_head

from bezoar.attacks import Attack
from bezoar.bench.summary import is_removed
from bezoar.classifier import Classifier
from bezoar.datasets import open_dataset
from bezoar.evaluation import Scores, compare, evaluate
from bezoar.images import ImageSet
from bezoar.methods import is_data_free, methods
from bezoar.metrics import accuracy
from bezoar.pools import open_pool
from bezoar.pools.index import Entry
from bezoar.records import to_json, write_json

RESULTS = Path(__file__).parent / "results" / "pool_methods.json"
POOL = Path(__file__).parent / "pool"
TEST_IMAGES = 2000
FAMILIES = {
    "bad-nets": "patch",
    "trojan-square": "Trojan",
    "trojan-watermark": "Trojan",
    "blend": "blend",
    "adap-blend": "blend",
    "sig": "clean label",
    "tbt": "weight space",
    "awp": "weight space",
}


@dataclass
class Options:
    """What to run.

    Attributes:
        methods: which ones.
        half: of the pool; settings were chosen on ``development``.
        seeds: each draws other clean images.
        images: clean images for each repair.
        models: a part of the names; by default all.
        threads: of torch.
        pool: its folder.
        out: the result file.
    """

    methods: tuple[str, ...] = ("rnp",)
    half: Literal["development", "held-out"] = "held-out"
    seeds: tuple[int, ...] = (0, 1, 2)
    images: int = 500
    models: tuple[str, ...] = ()
    threads: int = 1
    pool: Path = POOL
    out: Path = RESULTS


def refuse_public(names: Sequence[str]) -> None:
    """Ends where a method needs public images, which have a benchmark of their own."""
    for name in names:
        if name in methods.names() and methods.get(name).needs == "public images":
            sys.exit(f"{name} needs public images; it is measured by benchmarks/fred_removal.py")


def parts(data: str) -> tuple[ImageSet, ImageSet]:
    """Where clean images are drawn from, and the test images."""
    everything = open_dataset(data, "test")
    test, rest = everything.split(TEST_IMAGES / len(everything), seed=12345)
    return rest, test


@dataclass
class Suspect:
    """A model of the pool, its trigger, and its scores once they are known."""

    entry: Entry
    classifier: Classifier
    attack: Attack | None
    scores: Scores | None = None


def one(
    suspect: Suspect, name: str, seed: int, images: tuple[ImageSet, ImageSet], count: int
) -> dict[str, Any]:
    """One repair and its measurement."""
    rest, test = images
    entry, classifier, attack = suspect.entry, suspect.classifier, suspect.attack
    method = methods.get(name)()
    classifier.trace(test.shape)
    started, used = time.perf_counter(), time.process_time()
    if is_data_free(method):
        repair = method.remove(classifier, None, seed=seed)
    else:
        repair = method.remove(classifier, rest.sample(count, seed=seed), seed=seed)
    row: dict[str, Any] = {
        "model": entry.name,
        "half": entry.half,
        "status": entry.status,
        "method": name,
        "seed": seed,
        "clean images": 0 if is_data_free(method) else count,
        "seconds": time.perf_counter() - started,
        "processor seconds": time.process_time() - used,
        "steps": repair.record.get("seconds"),
    }
    told = ("p", "carried", "strong triggers", "way", "cost")
    row |= {key: repair.record[key] for key in told if key in repair.record}
    if attack is None:
        for when, model in (("before", classifier), ("after", repair.classifier)):
            row[when] = {"acc": clean_accuracy(model, test)}
        return row
    if suspect.scores is None:
        suspect.scores = evaluate(classifier, test, attack)
    compared = compare(attack, suspect.scores, evaluate(repair.classifier, test, attack))
    row |= {key: compared[key] for key in ("before", "after", "der")}
    found = repair.record.get("target_class")
    row |= {
        "attack": entry.attack,
        "family": FAMILIES.get(entry.attack, "other"),
        "target": entry.target,
        "found": found,
        "twin asr": entry.twin_asr,
    }
    for key in ("pruning", "tuning", "trigger"):
        if isinstance(repair.record.get(key), dict):
            row[key] = {k: v for k, v in repair.record[key].items() if k not in ("pruned", "loss")}
    return row


def clean_accuracy(classifier: Classifier, test: ImageSet) -> Any:
    """ACC as records hold it."""
    labels = test.require_labels("measuring").to(classifier.device)
    return accuracy(classifier.logits(test).argmax(1), labels).as_record()


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means and spreads over models and seeds, for each method, half, status and family."""
    rows = []
    keys = {(r["method"], r["half"], r["clean images"], r["status"], r.get("family")) for r in runs}
    for method, half, count, status, family in sorted(keys, key=str):
        chosen = [
            r
            for r in runs
            if (r["method"], r["half"], r["clean images"], r["status"], r.get("family"))
            == (method, half, count, status, family)
        ]
        drops = [r["before"]["acc"]["value"] - r["after"]["acc"]["value"] for r in chosen]
        row: dict[str, Any] = {
            "method": method,
            "pool half": half,
            "clean images": count,
            "models are": status,
            "family": family,
            "models": len({r["model"] for r in chosen}),
            "runs": len(chosen),
            "acc drop": spread(drops),
            "processor seconds": statistics.fmean(r["processor seconds"] for r in chosen),
        }
        if status != "clean":
            row["asr before"] = statistics.fmean(r["before"]["asr"]["value"] for r in chosen)
            row["asr after"] = spread([r["after"]["asr"]["value"] for r in chosen])
            row["ra after"] = statistics.fmean(r["after"]["ra"]["value"] for r in chosen)
            row["twin asr"] = statistics.fmean(r["twin asr"] for r in chosen)
            row["der"] = statistics.fmean(r["der"] for r in chosen)
            row["label right"] = statistics.fmean(r["found"] == r["target"] for r in chosen)
            row["asr <= 0.10 and drop <= 0.05"] = sum(
                is_removed(r["after"]["asr"]["value"], d)
                for r, d in zip(chosen, drops, strict=True)
            )
        rows.append(row)
    return rows


def spread(values: list[float]) -> dict[str, float | None]:
    """Mean, standard deviation over models and seeds (None for a single value), and the highest."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "highest": max(values),
    }


def main(options: Options) -> None:
    """Runs what is missing."""
    refuse_public(options.methods)
    torch.set_num_threads(options.threads)
    pool = open_pool(options.pool)
    done = json.loads(options.out.read_text()) if options.out.exists() else {"runs": []}
    done |= result_head(__file__, "Repairs of the pool's models", f"{options.threads} thread(s)")
    names = ("method", "model", "seed", "clean images")
    known = {tuple(run[key] for key in names) for run in done["runs"]}
    images: dict[str, tuple[ImageSet, ImageSet]] = {}
    suspects = [
        Suspect(entry, pool.load(entry).classifier, pool.attack(entry) if entry.attack else None)
        for entry in pool.half(options.half)
        if not options.models or any(part in entry.name for part in options.models)
    ]
    for seed in options.seeds:
        for suspect in suspects:
            for name in options.methods:
                count = 0 if methods.get(name).needs == "nothing" else options.images
                if (name, suspect.entry.name, seed, count) in known:
                    continue
                data = suspect.entry.data
                if data not in images:
                    images[data] = parts(data)
                row = to_json(one(suspect, name, seed, images[data], options.images))
                done["runs"].append(row)
                done["summary"] = summary(done["runs"])
                write_json(options.out, done)
                print(line(row), flush=True)


def line(row: dict[str, Any]) -> str:
    """A run on one line."""
    rates = [
        f"{key} {100 * row['before'][key]['value']:.1f} -> {100 * row['after'][key]['value']:.1f}"
        for key in row["before"]
    ]
    label = f"label {row['found']}/{row['target']}" if "target" in row else ""
    return " ".join(
        [
            row["method"],
            row["model"],
            f"seed {row['seed']}",
            *rates,
            label,
            f"{row['seconds']:.0f} s",
        ]
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
