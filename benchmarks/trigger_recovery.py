"""Is a trigger recovered better from an unlearned network, as Li et al. 2023 claim?

    BEZOAR_DATA=... python benchmarks/trigger_recovery.py [--half held-out] [--seeds 0 1 2]

For each model of the pool whose trigger lies in some pixels only: the trigger of the *true* target
class, inverted on the original, on the half-unlearned network, and on both. Reported are its size
beside the true one's, the overlap with the true mask (intersection over union, cut at 0.5), and the
ASR on the original for test images of other classes. Only this benchmark knows the true mask.
Writes ``results/trigger_recovery.json`` after each model; a rerun does what is missing.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pool_methods
import torch
import tyro
from result_file import result_head
from torch import Tensor

from bezoar.attacks import Attack
from bezoar.methods import RNP
from bezoar.methods.neural_cleanse_schedule import Inversion
from bezoar.methods.rnp_trigger import Network, recover_trigger
from bezoar.methods.rnp_unlearning import unlearn
from bezoar.pools import open_pool
from bezoar.records import to_json, write_json

RESULTS = Path(__file__).parent / "results" / "trigger_recovery.json"
ATTACKS = ("bad-nets", "trojan-square", "trojan-watermark", "l0-inv", "tbt")


@dataclass
class Options:
    """What to run.

    Attributes:
        half: of the pool.
        seeds: each draws other clean images.
        images: clean images; a third of them only validates.
        threads: of torch.
    """

    half: Literal["development", "held-out"] = "held-out"
    seeds: tuple[int, ...] = (0,)
    images: int = 500
    threads: int = 1


def true_mask(attack: Attack, shape: tuple[int, int, int]) -> Tensor:
    """Which pixels (h, w) the trigger changes, on black, grey or white."""
    changed = torch.zeros(shape[1:], dtype=torch.bool)
    for level in (0.0, 0.5, 1.0):
        plain = torch.full((1, *shape), level)
        changed |= ((attack.stamp(plain) - plain).abs() > 1 / 255).any(1)[0]
    return changed


def overlap(mask: Tensor, truth: Tensor) -> float:
    """Intersection over union of a mask (h, w) cut at 0.5 and the true pixels."""
    found = mask > 0.5
    return float((found & truth).sum() / (found | truth).sum())


def main(options: Options) -> None:
    """Runs what is missing."""
    torch.set_num_threads(options.threads)
    pool = open_pool(pool_methods.POOL)
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    runs: list[dict[str, Any]] = done.get("runs", [])
    known = {(r["model"], r["seed"]) for r in runs}
    for seed in options.seeds:
        for entry in pool.half(options.half):
            if entry.status != "backdoored" or entry.attack not in ATTACKS:
                continue
            if (entry.name, seed) in known:
                continue
            rest, test = pool_methods.parts(entry.data)
            classifier, attack = pool.load(entry).classifier, pool.attack(entry)
            clean, held_out = rest.sample(options.images, seed=seed).split(2 / 3, seed=seed)
            classifier.trace(clean.shape)
            run = unlearn(classifier, clean, RNP().unlearning, seed=seed)
            truth = true_mask(attack, clean.shape)
            for network in get_args(Network):
                started = time.perf_counter()
                found = recover_trigger(
                    classifier,
                    run,
                    clean,
                    held_out,
                    attack.target,
                    Inversion(),
                    network=network,
                    seed=seed,
                )
                row = {"model": entry.name, "seed": seed, "attack": entry.attack}
                row |= {"network": network, "norm": float(found.triggers.norms[0])}
                row |= {"true pixels": int(truth.sum())}
                row["overlap"] = overlap(found.triggers.masks[0, 0].cpu(), truth)
                row["asr on the original"] = found.carried_by(classifier, test)
                row["carried on its own network"] = found.carried_unlearned
                row["seconds"] = time.perf_counter() - started
                runs.append(to_json(row))
                print(row, flush=True)
            record = result_head(
                __file__,
                "Triggers recovered from original and half-unlearned networks",
                f"{options.threads} thread(s)",
            ) | {"summary": summary(runs), "runs": runs}
            write_json(RESULTS, record)


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over models and seeds."""
    rows = []
    for network in get_args(Network):
        chosen = [r for r in runs if r["network"] == network]
        sized = [r["norm"] for r in chosen if r["norm"] is not None]
        row: dict[str, Any] = {"name": network, "counted": len(chosen), "worked": len(sized)}
        row["median norm"] = statistics.median(sized) if sized else None
        for key in ("overlap", "asr on the original"):
            row[key] = statistics.fmean(r[key] for r in chosen)
        rows.append(row)
    return rows


if __name__ == "__main__":
    main(tyro.cli(Options))
