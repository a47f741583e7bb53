"""A scan of a small network with 500 images against one forward pass over them, in one run.

python benchmarks/scan_speed.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from result_file import result_head

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.images import ImageSet
from bezoar.pipeline import scan
from bezoar.records import write_json

RESULTS = Path(__file__).parent / "results" / "scan_speed.json"


@dataclass
class Options:
    """What to run.

    Attributes:
        threads: of torch.
        repetitions: the fastest one counts.
    """

    threads: int = 1
    repetitions: int = 5


def fastest(work: Callable[[], Any], repetitions: int) -> float:
    """Wall seconds of the fastest repetition."""
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def main(options: Options) -> None:
    """Measures three networks; random weights take the same time as trained ones."""
    torch.set_num_threads(options.threads)
    rows = []
    for name, classes in (("wrn-16-1", 10), ("resnet-8", 43), ("resnet-20", 10)):
        torch.manual_seed(0)
        network = networks.build(name, num_classes=classes)
        classifier = Classifier(network, mean=0.5, std=0.25)
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (500, 3, 32, 32), dtype=torch.uint8, generator=generator)
        images = ImageSet.from_arrays(pixels)
        one_pass = fastest(lambda c=classifier, x=images: c.logits(x), options.repetitions)
        # Without labels: a random network would, rightly, be refused as no better than chance.
        whole = fastest(
            lambda c=classifier, x=images: scan(c, x, witnesses=["tac"]), options.repetitions
        )
        rows.append(
            {
                "network": name,
                "classes": classes,
                "one forward pass (s)": one_pass,
                "scan (s)": whole,
                "scan / forward pass": whole / one_pass,
            }
        )
        print(rows[-1], flush=True)
    record = result_head(
        __file__,
        "A scan by TAC alone with 500 images of 32x32 against one forward pass over them",
        f"{options.threads} thread(s)",
    ) | {"runs": rows}
    write_json(RESULTS, record)


if __name__ == "__main__":
    main(tyro.cli(Options))
