"""How well ``sift`` tells stamped images from clean ones, on the models of a pool.

    BEZOAR_DATA=... python benchmarks/sifting.py [--half held-out] [--seeds 0 1 2]

For each backdoored model: clean images with labels, and a heap of as many stamped and clean ones,
all of the data set's test file and disjoint. AUROC stands there twice, against all clean images of
the heap and against those that the attack would change (of another class than its target), because
clean images of the target class keep their answer as well. For each clean model, and for the clean
part of each heap alone: how many are flagged at the level, and whether that would be an alarm.
Each run is written to ``results/sifting.json`` at once, and a rerun does only what is missing.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from result_file import result_head

from bezoar.attacks import Attack
from bezoar.classifier import Classifier
from bezoar.conformal import excess_p_value, rank_at
from bezoar.datasets import open_dataset
from bezoar.images import ImageSet
from bezoar.metrics import auroc, rate, tpr_at_fpr
from bezoar.pools import open_pool
from bezoar.records import write_json
from bezoar.sifting import sift

RESULTS = Path(__file__).parent / "results" / "sifting.json"
POOL = Path(__file__).parent / "pool"
LEVEL = 0.05


@dataclass
class Options:
    """What to run.

    Attributes:
        half: of the pool; settings were chosen on digits, and on no model of it.
        seeds: each draws other images.
        images: clean images with labels; stamped ones; clean ones beside them.
        models: names; by default all that are clean or backdoored.
        threads: of torch.
        pool: its folder.
        out: the result file.
    """

    half: Literal["development", "held-out"] = "held-out"
    seeds: tuple[int, ...] = (0, 1, 2)
    images: int = 500
    models: tuple[str, ...] = ()
    threads: int = 1
    pool: Path = POOL
    out: Path = RESULTS


def stamped(images: ImageSet, attack: Attack) -> ImageSet:
    """The images with the trigger, rounded to 8 bits as in a file."""
    batches = [attack.stamp(batch) for batch, _ in images.batches(500)]
    return ImageSet.from_arrays((torch.cat(batches) * 255).round().clamp(0, 255).to(torch.uint8))


def one(
    classifier: Classifier, attack: Attack | None, everything: ImageSet, seed: int, count: int
) -> dict[str, Any]:
    """One model, one seed."""
    clean, rest = everything.split(count / len(everything), seed=seed)
    plain, rest = rest.split(count / len(rest), seed=seed)
    pixels = plain.images
    if attack is not None:
        counted = torch.nonzero(attack.applies_to(rest.require_labels("stamping"))).flatten()
        victims = rest.subset(counted).sample(count, seed=seed)
        pixels = torch.cat([pixels, stamped(victims, attack.parts[0]).images])
    started = time.perf_counter()
    sifted = sift(classifier, ImageSet.from_arrays(pixels), clean, seed=seed, level=LEVEL)
    seconds = time.perf_counter() - started
    n = len(plain)
    of_clean = sum(index < n for index in sifted.flagged)
    row: dict[str, Any] = {
        "flagged of clean": rate(of_clean, n).as_record(),
        "excess p of the clean part": excess_p_value(
            of_clean, n, rank_at(LEVEL, len(clean)), len(clean)
        ),
        "seconds": seconds,
    }
    if attack is None:
        return row
    labels = plain.require_labels("comparing")
    positive, negative = sifted.scores[n:], sifted.scores[:n]
    others = negative[attack.applies_to(labels)]
    wanted = attack.parts[0].relabel(victims.require_labels("comparing"))
    return row | {
        "asr": rate(int((sifted.answers[n:] == wanted).sum()), len(wanted)).as_record(),
        "auroc": auroc(positive, negative),
        "auroc against other classes": auroc(positive, others),
        "tpr at fpr 1 %": tpr_at_fpr(positive, negative, 0.01),
        "tpr at fpr 5 %": tpr_at_fpr(positive, negative, 0.05),
        "flagged of stamped": rate(len(sifted.flagged) - of_clean, len(positive)).as_record(),
        "excess p": sifted.excess_p,
    }


def main(options: Options) -> None:
    """Runs what is missing."""
    torch.set_num_threads(options.threads)
    pool = open_pool(options.pool)
    done = json.loads(options.out.read_text()) if options.out.exists() else {"runs": []}
    done |= result_head(
        __file__,
        "Stamped among clean images: sift on the models of the pool",
        f"{options.threads} thread(s)",
    ) | {"level": LEVEL}
    known = {(run["model"], run["seed"], run["images"]) for run in done["runs"]}
    data: dict[str, ImageSet] = {}
    for entry in pool.half(options.half):
        if entry.status not in ("clean", "backdoored"):
            continue
        if options.models and entry.name not in options.models:
            continue
        if entry.data not in data:
            data[entry.data] = open_dataset(entry.data, "test")
        classifier = pool.load(entry).classifier
        attack = pool.attack(entry) if entry.attack else None
        for seed in options.seeds:
            if (entry.name, seed, options.images) in known:
                continue
            row = {
                "model": entry.name,
                "half": entry.half,
                "attack": entry.attack,
                "target": entry.target,
                "seed": seed,
                "images": options.images,
            } | one(classifier, attack, data[entry.data], seed, options.images)
            done["runs"].append(row)
            write_json(options.out, done)
            shown = {
                key: value["value"] if isinstance(value, dict) else value
                for key, value in row.items()
            }
            print({k: round(v, 4) if isinstance(v, float) else v for k, v in shown.items()})


if __name__ == "__main__":
    main(tyro.cli(Options))
