"""Wall seconds of ``scan`` and of ``clean`` without a method, on a machine with nothing else to do.

    BEZOAR_DATA=... python benchmarks/command_speed.py [--threads 2]

Models of the pool's development half with 500 clean images each, everything at its default: a
backdoor-free one, in which nothing is repaired, one whose first repair is sufficient, and one where
none is, so that every repair is tried. Each line is written to ``results/command_speed.json`` at
once, and a rerun does only what is missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from measured_models import MODELS
from result_file import result_head

from bezoar.pipeline import clean, scan
from bezoar.records import write_json

RESULTS = Path(__file__).parent / "results" / "command_speed.json"
IMAGES = 500


@dataclass
class Options:
    """What to run.

    Attributes:
        models: names in the pool.
        commands: which ones.
        threads: of torch.
        seed: of the images and of the commands.
        out: the result file.
    """

    models: tuple[str, ...] = (
        "cifar10-resnet-8-clean-a708da",
        "gtsrb-resnet-8-trojan-square-ab071c",
        "cifar10-resnet-8-tbt-848081",
    )
    commands: tuple[Literal["scan", "clean"], ...] = ("scan", "clean")
    threads: int = 2
    seed: int = 0
    out: Path = RESULTS


def timed(command: str, name: str, seed: int) -> dict[str, Any]:
    """Runs one command on one model."""
    one = MODELS["pool"](name, IMAGES, seed)
    started, used = time.perf_counter(), time.process_time()
    if command == "scan":
        finding = scan(one.classifier, one.clean, seed=seed)
        verdict, trials = finding.verdict.value, 0
    else:
        record = clean(one.classifier, one.clean, seed=seed).record
        verdict, trials = record["scan"]["verdict"], len(record.get("trials", []))
    seconds, processor = time.perf_counter() - started, time.process_time() - used
    return {
        "model": name,
        "command": command,
        "classes": one.classifier.num_classes,
        "verdict": verdict,
        "repairs tried": trials,
        "seconds": seconds,
        "processor seconds": processor,
    }


def missing(options: Options, runs: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Command and model of each line that is not there."""
    known = {(r["command"], r["model"], r["threads"], r["seed"]) for r in runs}
    for name in options.models:
        for command in options.commands:
            if (command, name, options.threads, options.seed) not in known:
                yield command, name


def main(options: Options) -> None:
    """Measures what is missing."""
    runs: list[dict[str, Any]] = []
    if options.out.exists():
        runs = json.loads(options.out.read_text())["runs"]
    torch.set_num_threads(options.threads)
    for command, name in missing(options, runs):
        row = timed(command, name, options.seed)
        runs.append(row | {"threads": options.threads, "seed": options.seed})
        print(row, flush=True)
        done = result_head(
            __file__,
            "How long `scan` and `clean` take with 500 images of 32x32",
            "nothing else running",
        ) | {"runs": runs}
        write_json(options.out, done)


if __name__ == "__main__":
    main(tyro.cli(Options))
