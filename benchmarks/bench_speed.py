"""What the benchmark's harness costs, what a second process brings, and how fast a model loads.

    BEZOAR_DATA=... python benchmarks/bench_speed.py

The same grid runs with one worker and with two, from nothing each time, in turns on the same
machine. The harness's share is what of the wall time is not spent inside runs: starting processes,
planning, opening the images, handing over, writing. Written to ``results/bench_speed.json``.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from result_file import result_head

from bezoar import bench
from bezoar.executors import make_executor
from bezoar.pools import open_pool
from bezoar.records import to_json, write_json

RESULTS = Path(__file__).parent / "results" / "bench_speed.json"
POOL = Path(__file__).parent / "pool"


@dataclass
class Options:
    """What to run.

    Attributes:
        method: of every run.
        models: shell patterns of names.
        turns: how often each number of workers is measured.
        pool: its folder.
        out: the result file.
    """

    method: str = "ft:recipe.epochs=20"
    models: tuple[str, ...] = (
        *("cifar10-resnet-8-trojan-watermark-*", "cifar10-resnet-8-sig-*"),
        *("cifar10-resnet-8-blend-*", "cifar10-resnet-8-l0-inv-*"),
    )
    turns: int = 1
    pool: Path = POOL
    out: Path = RESULTS


def one(options: Options, workers: int) -> dict[str, Any]:
    """One grid from nothing."""
    grid = bench.BenchGrid(
        pool=str(options.pool),
        methods=(options.method,),
        models=options.models,
        seeds=(0,),
        control_epochs=(5,),
    )
    out = Path(tempfile.mkdtemp())
    started = time.perf_counter()
    try:
        ready = bench.make_ready(grid, out)
        executor = make_executor(f"local:{workers}", cpus_per_task=1, reuse=True)
        summary = bench.run(ready, out, executor, device="cpu")
    finally:
        shutil.rmtree(out)
    wall = time.perf_counter() - started
    if summary.failed:
        raise SystemExit(f"runs failed: {summary.failed}")
    return {
        "workers": workers,
        "runs": summary.ran,
        "seconds": wall,
        "seconds in runs": summary.working_seconds,
        "share of the harness": 1 - summary.working_seconds / workers / wall,
    }


def loading(pool_folder: Path) -> dict[str, float]:
    """Milliseconds of loading each model of the pool, the first one (imports) left out."""
    pool = open_pool(pool_folder)
    taken = []
    for entry in (pool.entries[0], *pool.entries):
        started = time.perf_counter()
        pool.load(entry, device="cpu")
        taken.append(1000 * (time.perf_counter() - started))
    return {
        "models": len(taken) - 1,
        "median": statistics.median(taken[1:]),
        "most": max(taken[1:]),
    }


def main(options: Options) -> None:
    """Measures and writes."""
    torch.set_num_threads(1)
    runs = [one(options, workers) for _ in range(options.turns) for workers in (1, 2)]
    single, double = (
        [run["seconds"] for run in runs if run["workers"] == workers] for workers in (1, 2)
    )
    result = result_head(__file__, "The benchmark's harness", "one thread a run") | {
        "runs": runs,
        "two workers against one": statistics.fmean(single) / statistics.fmean(double),
        "milliseconds to load a model": loading(options.pool),
    }
    write_json(options.out, result)
    print(json.dumps(to_json(result), indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options))
