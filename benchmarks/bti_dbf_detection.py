"""BTI-DBF's null, its false alarms and its power: how strong recovered triggers are.

    BEZOAR_DATA=... python benchmarks/bti_dbf_detection.py [--null 12] [--parts null judged]

``null`` trains backdoor-free networks of several kinds on parts of CIFAR-10's and GTSRB's training
files (all signs, or twelve of them), takes those of the pool's development half as well, recovers a
trigger from each with 500 clean images, and writes the strengths of those that answer at least half
of the test images rightly to
``src/bezoar/data/bti_dbf_null.json``. ``judged`` recovers triggers from the
models of the pool and tests them against that null: the development half, on which the settings
were chosen, and the held-out half apart. ``digits`` does the same with digit networks, which are no
part of the null. ``third-party`` with the third-party checkpoints. Each network is written to
``results/bti_dbf_detection.json`` at once, and a rerun does only what is missing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import false_alarms
import third_party
import torch
import tyro
from null_networks import CLEAN_IMAGES, null_network
from pool_methods import POOL, parts
from result_file import result_head

from bezoar.classifier import Classifier
from bezoar.images import ImageSet
from bezoar.methods import BtiDbf
from bezoar.methods.bti_dbf_generators import GeneratorInversion
from bezoar.methods.bti_dbf_strength import null_strengths, strength_test
from bezoar.metrics import auroc, rate
from bezoar.pools import open_pool
from bezoar.records import write_json

RESULTS = Path(__file__).parent / "results" / "bti_dbf_detection.json"
NULL = Path(__file__).parents[1] / "src" / "bezoar" / "data" / "bti_dbf_null.json"
NULL_SEED, DIGITS_SEED = 6000, 7000
TASKS = ("cifar10", "gtsrb", "twelve signs")


@dataclass
class Options:
    """What to run.

    Attributes:
        parts: which ones.
        null: backdoor-free networks of the null.
        digits: digit networks of each kind.
        seeds: of the judged models' clean images and of all draws.
        images: clean images for each judged model.
        keep: a folder where trained networks are kept, and taken from where they are there.
        constraint: ``switch`` inverts with the official code's switch and distances instead.
        threads: of torch.
    """

    parts: tuple[Literal["null", "judged", "digits", "third-party"], ...] = (
        "judged",
        "third-party",
        "null",
    )
    null: int = 12
    digits: int = 10
    seeds: tuple[int, ...] = (0,)
    images: int = CLEAN_IMAGES
    keep: Path | None = None
    constraint: Literal["scaled", "switch"] = "scaled"
    threads: int = 1


def look(
    classifier: Classifier, clean: ImageSet, seed: int, constraint: str = "scaled"
) -> dict[str, Any]:
    """What the scan recovers."""
    method = BtiDbf()
    if constraint == "switch":
        switch = GeneratorInversion(
            constraint="switch", bound=0.3**0.5, distance="mean square", benign_weight=0.01
        )
        method = BtiDbf(inversion=switch)
    started, used = time.perf_counter(), time.process_time()
    evidence = method.inspect(classifier, clean, seed=seed)
    record = evidence.record
    return {
        "strength": record["strength"],
        "found": record["target_class"],
        "carried": record["carried"],
        "reading": record["reading"]["kind"],
        "smallest rms": record["smallest rms"],
        "rest accuracy": record["decoupling"]["rest"]["accuracy"],
        "weakness": record["decoupling"]["weakness"],
        "seconds": time.perf_counter() - started,
        "processor seconds": time.process_time() - used,
    }


def pool_models(options: Options) -> Iterator[tuple[dict[str, Any], Classifier, ImageSet]]:
    """The pool's models with their clean images."""
    pool = open_pool(POOL)
    for seed in options.seeds:
        for half in ("development", "held-out"):
            for entry in pool.half(half):
                facts = {
                    "kind": "judged",
                    "half": half,
                    "model": entry.name,
                    "status": entry.status,
                    "attack": entry.attack,
                    "target": entry.target,
                    "seed": seed,
                    "clean images": options.images,
                }
                rest, _ = parts(entry.data)
                clean = rest.sample(options.images, seed=seed)
                yield facts, pool.load(entry).classifier, clean


def third_party_models(options: Options) -> Iterator[tuple[dict[str, Any], Classifier, ImageSet]]:
    """The third-party checkpoints."""
    root = Path(os.environ["BEZOAR_DATA"])
    for folder in third_party.checkpoints(root):
        loaded, known = third_party.load(folder)
        everything = third_party.test_images(root, known)
        for seed in options.seeds:
            clean, _ = everything.split(options.images / len(everything), seed=seed)
            facts = {
                "kind": "third-party",
                "half": "third-party",
                "model": folder.name,
                "status": "backdoored" if known["backdoored"] else "clean",
                "attack": known["attack"]["kind"] if known["backdoored"] else None,
                "target": known["attack"]["target"] if known["backdoored"] else None,
                "seed": seed,
                "clean images": options.images,
            }
            yield facts, loaded.classifier, clean


def digit_models(options: Options) -> Iterator[tuple[dict[str, Any], Classifier, ImageSet]]:
    """Digit networks: backdoor-free, with a patch, with faint noise."""
    for kind in ("clean", "bad-nets", "blend"):
        for number in range(options.digits):
            seed = DIGITS_SEED + number
            classifier, clean, row = false_alarms.trained(kind, seed)
            usable = row["acc"] >= 0.9 and (row["asr"] is None or row["asr"] >= 0.9)
            facts = {
                "kind": "digits",
                "half": "digits",
                "model": f"{kind} {seed}",
                "status": ("clean" if kind == "clean" else "backdoored") if usable else "weak",
                "attack": None if kind == "clean" else kind,
                "target": row["target"],
                "seed": seed,
                "clean images": len(clean),
            }
            yield facts, classifier, clean


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rates for each half: false alarms, power, right classes, and AUROC of the strength."""
    rows = []
    keys = ("half", "clean images", "constraint")
    for half, count, constraint in sorted({tuple(r.get(k, "scaled") for k in keys) for r in runs}):
        own = [
            r for r in runs if tuple(r.get(k, "scaled") for k in keys) == (half, count, constraint)
        ]
        clean = [r for r in own if r["status"] == "clean"]
        bad = [r for r in own if r["status"] == "backdoored"]
        row: dict[str, Any] = {"pool half": half, "clean images": count, "constraint": constraint}
        row |= {"clean models": len(clean), "backdoored models": len(bad)}
        for name, chosen in (("false alarms", clean), ("flagged", bad)):
            if chosen:
                flags = torch.tensor([strength_test(r["strength"])[1] <= 0.05 for r in chosen])
                row[f"{name} at 0.05"] = rate(int(flags.sum()), len(flags)).as_record()
        if bad:
            right = sum(r["found"] == r["target"] for r in bad)
            row["class right"] = rate(right, len(bad)).as_record()
            both = sum(
                r["found"] == r["target"] and strength_test(r["strength"])[1] <= 0.05 for r in bad
            )
            row["flagged and class right"] = rate(both, len(bad)).as_record()
        if clean and bad:
            row["auroc"] = float(
                auroc(
                    torch.tensor([r["strength"] for r in bad]),
                    torch.tensor([r["strength"] for r in clean]),
                )
            )
        rows.append(row)
    return rows


def main(options: Options) -> None:
    """Runs what is missing."""
    torch.set_num_threads(options.threads)
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"null": [], "runs": []}
    done |= result_head(
        __file__, "BTI-DBF: strength of recovered triggers", f"{options.threads} thread(s)"
    )

    def save() -> None:
        for run in done["runs"]:
            run["p"] = strength_test(run["strength"])[1]
        done["summary"] = summary(done["runs"])
        write_json(RESULTS, done)

    names = ("model", "seed", "clean images", "constraint")
    known = {tuple(r.get(name, "scaled") for name in names) for r in done["runs"]}
    sources = {"judged": pool_models, "digits": digit_models, "third-party": third_party_models}
    for part, models in sources.items():
        if part not in options.parts:
            continue
        for facts, classifier, clean in models(options):
            facts["constraint"] = options.constraint
            if tuple(facts[name] for name in names) in known:
                continue
            row = facts | look(classifier, clean, facts["seed"], options.constraint)
            done["runs"].append(row)
            save()
            print(row, flush=True)
    if "null" in options.parts:
        for number in range(len(done["null"]), options.null):
            classifier, clean, facts = null_network(
                TASKS[number % 3], NULL_SEED + number, options.keep, kind=number // 3
            )
            row = {"kind": "null"} | facts | look(classifier, clean, facts["seed"])
            done["null"].append(row)
            save()
            print(row, flush=True)
        scaled = [r for r in done["runs"] if r.get("constraint", "scaled") == "scaled"]
        pool_rows = [r for r in scaled if r["half"] == "development"]
        ours = [r for r in pool_rows if r["status"] == "clean" and r["seed"] == 0]
        learned = [r for r in done["null"] if r["acc"] >= 0.5]
        strengths = sorted(row["strength"] for row in (*learned, *ours))
        write_json(NULL, {"version": 1, "strengths": strengths})
        null_strengths.cache_clear()
    save()


if __name__ == "__main__":
    main(tyro.cli(Options))
