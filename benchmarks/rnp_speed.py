"""How long RNP takes, step by step, evaluation excluded.

    BEZOAR_DATA=... python benchmarks/rnp_speed.py [--device cuda] [--repetitions 3]

The third-party WRN-16-1 (``nad_cifar10_grid``) with 500 clean images on one thread, ours and the
published preset in turns in one run; on a GPU also a ResNet-18 with random weights whose unlearning
and recovering are stopped after the official number of steps. The fastest repetition counts. Writes
``results/rnp_speed.json``.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import third_party
import torch
import tyro
from result_file import result_head

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.images import ImageSet
from bezoar.methods import RNP
from bezoar.methods.rnp_unlearning import Unlearning
from bezoar.records import write_json

RESULTS = Path(__file__).parent / "results" / "rnp_speed.json"
IMAGES = 500


@dataclass
class Options:
    """What to run.

    Attributes:
        device: where.
        repetitions: of each.
        threads: of torch.
    """

    device: str = "cpu"
    repetitions: int = 3
    threads: int = 1


def timed(method: RNP, classifier: Classifier, clean: ImageSet, repetitions: int) -> dict[str, Any]:
    """Seconds of each step in the fastest repetition."""
    best: dict[str, float] | None = None
    for seed in range(repetitions):
        started = time.perf_counter()
        repair = method.remove(classifier, clean, seed=seed)
        if classifier.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = repair.record["seconds"] | {"total": time.perf_counter() - started}
        if best is None or seconds["total"] < best["total"]:
            best = seconds
    assert best is not None
    return best


def main(options: Options) -> None:
    """Times both presets and writes the result."""
    torch.set_num_threads(options.threads)
    root = Path(os.environ["BEZOAR_DATA"])
    loaded, facts = third_party.load(root / "models" / "nad_cifar10_grid")
    loaded.classifier.network.to(options.device)
    clean = third_party.test_images(root, facts).sample(IMAGES, seed=0)
    cases = {"WRN-16-1": (loaded.classifier, RNP())}
    cases["WRN-16-1, published"] = (loaded.classifier, RNP.published())
    if options.device != "cpu":
        wide = Classifier(networks.build("resnet-18"), mean=0.5, std=0.25)
        wide.network.to(options.device)
        # Random weights start at chance, so the stop is put out of reach: all epochs are run.
        unlearning = Unlearning(max_epochs=21, stop=0.0, adapt=False)
        cases["ResNet-18, random weights"] = (wide, RNP(unlearning=unlearning))
    rows = []
    for name, (classifier, method) in cases.items():
        seconds = timed(method, classifier, clean, options.repetitions)
        row = {"case": name, "device": options.device, "images": len(clean), "seconds": seconds}
        rows.append(row)
        print(row, flush=True)
    record = result_head(
        __file__, "Seconds of RNP's steps", f"{options.threads} thread(s), {options.device}"
    ) | {"runs": rows}
    write_json(RESULTS, record)


if __name__ == "__main__":
    main(tyro.cli(Options))
