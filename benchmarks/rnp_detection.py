"""What unlearning shows of networks with and without a backdoor: RNP's null, false alarms, power.

    python benchmarks/rnp_detection.py [--null 60] [--models 10]

Trains small digit networks as ``false_alarms.py`` does, from other seeds. The first ``null``
backdoor-free ones make the null that ships with the package (``src/bezoar/data/rnp_null.json``);
others, again from seeds of their own, are judged by it: backdoor-free, with a patch (BadNets), with
faint noise (Blend). Writes ``results/rnp_detection.json`` after each network; a rerun does what is
missing.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import false_alarms
import torch
import tyro
from result_file import result_head

from bezoar.methods import RNP
from bezoar.methods.rnp_exposure import excess, expose, null_excesses, null_p_values
from bezoar.metrics import rate
from bezoar.records import to_json, write_json

RESULTS = Path(__file__).parent / "results" / "rnp_detection.json"
NULL = Path(__file__).parents[1] / "src" / "bezoar" / "data" / "rnp_null.json"
NULL_SEED, JUDGED_SEED = 4000, 5000


@dataclass
class Options:
    """What to run.

    Attributes:
        null: backdoor-free networks of the null.
        models: networks of each kind that are judged by it.
        threads: of torch.
    """

    null: int = 60
    models: int = 10
    threads: int = 1


def exposed(kind: str, seed: int) -> dict[str, Any]:
    """The shares of one network after unlearning."""
    classifier, clean, row = false_alarms.trained(kind, seed)
    method = RNP()
    found = expose(classifier, clean, method.unlearning, repeats=method.repeats, seed=seed)
    return row | {
        "shares": list(found.shares),
        "largest excess": excess(max(found.shares), len(found.shares)),
        "fallback": found.fallback,
        "fallbacks": list(found.fallbacks),
        "reached": found.reached,
    }


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rates with 95 % intervals of the judged networks."""
    rows = []
    for kind, norm in itertools.product(("clean", "bad-nets", "blend"), (True, False)):
        chosen = [r for r in runs if (r["kind"], r["norm"]) == (kind, norm) and r["acc"] >= 0.9]
        usable = [r for r in chosen if r["asr"] is None or r["asr"] >= 0.9]
        if not usable:
            continue
        networks = "BatchNorm" if norm else "no norm"
        row: dict[str, Any] = {"kind": kind, "networks": networks, "counted": len(usable)}
        row["left out, ASR below 90 %"] = len(chosen) - len(usable)
        tested = [null_p_values(r["shares"], batch_norm=r["norm"])[1] for r in usable]
        if kind == "clean":
            flagged = [min(p) for p in tested]
        else:
            flagged = [p[r["target"]] for p, r in zip(tested, usable, strict=True)]
            hits = sum(r["fallback"] == r["target"] for r in usable)
            row["fallback is the target"] = rate(hits, len(usable)).as_record()
            single = [f == r["target"] for r in usable for f in r["fallbacks"]]
            row["fallback of a single run"] = rate(sum(single), len(single)).as_record()
        for level in (0.05, 0.01):
            hits = sum(p <= level for p in flagged)
            row[f"flagged at {level:g}"] = rate(hits, len(usable)).as_record()
        rows.append(row)
    return rows


def main(options: Options) -> None:
    """Runs what is missing."""
    torch.set_num_threads(options.threads)
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    runs: dict[str, list[dict[str, Any]]] = {"null": [], "judged": []} | done.get("runs", {})
    jobs = [("null", "clean", NULL_SEED + i) for i in range(options.null)]
    kinds = ("clean", "bad-nets", "blend")
    jobs += [("judged", k, JUDGED_SEED + i) for i in range(options.models) for k in kinds]
    for part, kind, seed in jobs:
        if any((r["kind"], r["seed"]) == (kind, seed) for r in runs[part]):
            continue
        if part == "judged":
            write_null(runs["null"])
        runs[part].append(to_json(exposed(kind, seed)))
        write(runs, options)
        print(part, kind, seed, runs[part][-1]["largest excess"], flush=True)
    write_null(runs["null"])
    write(runs, options)


def write_null(runs: list[dict[str, Any]]) -> None:
    """What the package ships."""
    learned = [r for r in runs if r["acc"] >= 0.9]
    record: dict[str, Any] = {"version": 1}
    for name, norm in (("batch norm", True), ("no norm", False)):
        record[name] = sorted(r["largest excess"] for r in learned if r["norm"] is norm)
    write_json(NULL, record)
    null_excesses.cache_clear()


def write(runs: dict[str, list[dict[str, Any]]], options: Options) -> None:
    """The results so far."""
    record = result_head(
        __file__,
        "Where unlearned networks fall: RNP's null, false alarms and power",
        f"{options.threads} thread(s)",
    )
    if runs["judged"]:
        record["summary"] = summary(runs["judged"])
    write_json(RESULTS, record | {"runs": runs})


if __name__ == "__main__":
    main(tyro.cli(Options))
