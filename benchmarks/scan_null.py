"""The scan's null: what all witnesses say of many networks.

    BEZOAR_DATA=... python benchmarks/scan_null.py [--sets null] [--executor local:2]

``null`` are networks without a backdoor that are trained here (``null_networks.py``), with 10, 12,
43 and 200 classes; ``pool`` the models of the pool, by default the development half, which was
looked at while the rule was made. Each network is written to ``results/scan_null.json`` at once,
and a rerun does only what is missing. From the null networks and the backdoor-free ones of the
development half ``src/bezoar/data/scan_null.json`` is made, against which every scan is judged.
``automatic.py`` looks at the held-out half and at networks that nobody here trained (``--half
held-out`` and ``--sets third-party`` do so here, with one draw of images), and ``scan_power.py``
tells what it all comes to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from finished_tasks import finished
from measured_models import third_party_names
from pool_methods import POOL
from result_file import result_head
from witness_looking import look

from bezoar.executors import Task
from bezoar.pools import open_pool
from bezoar.records import to_json, write_json, write_text
from bezoar.scanning import WITNESSES

RESULTS = Path(__file__).parent / "results" / "scan_null.json"
NETWORKS = {"digits": 18, "pairs": 10, "cifar10": 9, "gtsrb": 6, "twelve signs": 4}
NULL = Path(__file__).parents[1] / "src" / "bezoar" / "data" / "scan_null.json"
VERSION = 4
LEARNED = 0.5  # smallest accuracy of a network that counts


@dataclass
class Options:
    """What to run.

    Attributes:
        sets: of networks, in this order.
        half: of the pool.
        executor: where, and how many side by side.
        keep: a folder where trained networks are kept, and taken from where they are there.
    """

    sets: tuple[Literal["null", "pool", "third-party"], ...] = ("null", "pool")
    half: tuple[str, ...] = ("development",)
    executor: str = "local:2"
    keep: Path | None = None


def subjects(options: Options) -> Iterator[tuple[str, str, int]]:
    """Set, name and seed of each network."""
    for kind in options.sets:
        if kind == "null":
            for name, count in NETWORKS.items():
                yield from (("null", name, seed) for seed in range(count))
        elif kind == "pool":
            pool = open_pool(POOL)
            for half in options.half:
                yield from (("pool", entry.name, 0) for entry in pool.half(half))
        else:
            yield from (("third-party", name, 0) for name in third_party_names())


def tasks(options: Options, runs: dict[str, dict[str, Any]]) -> Iterator[Task]:
    """What is missing."""
    for kind, name, seed in subjects(options):
        key = f"{kind} {name} {seed}"
        known = runs.get(key, {"witnesses": {}})["witnesses"]
        missing = [name for name in WITNESSES if name not in known]
        if not missing:
            continue
        yield Task(
            key=key,
            function=look,
            arguments={
                "kind": kind,
                "name": name,
                "seed": seed,
                "witnesses": missing,
                "keep": options.keep and str(options.keep.resolve()),
            },
        )


def null_networks(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the scan keeps of each network without a backdoor: the p-values below 1, who looked."""
    return [
        {
            "task": run.get("task", run["name"]),
            "network": run.get("network", run["name"]),
            "classes": run["classes"],
            "p": {
                witness: {str(k): p for k, p in enumerate(found["p"]) if p < 1}
                for witness, found in sorted(run["witnesses"].items())
                if not found.get("refused")
            },
            "could not look": sorted(w for w, f in run["witnesses"].items() if f.get("refused")),
        }
        for run in runs
        if run["status"] == "clean" and run.get("half", "null") in ("null", "development")
        if run["set"] != "third-party" and run.get("acc", 1.0) >= LEARNED
    ]


def by_task(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many networks of each task there are, and how well they learned it."""
    rows = []
    own = [run for run in runs if run["set"] == "null"]
    for task in dict.fromkeys(run["task"] for run in own):
        found = [run for run in own if run["task"] == task]
        seconds = [sum(w["processor seconds"] for w in r["witnesses"].values()) for r in found]
        rows.append(
            {
                "models are": task,
                "classes": found[0]["classes"],
                "runs": len(found),
                "smallest accuracy": min(run["acc"] for run in found),
                "largest accuracy": max(run["acc"] for run in found),
                "processor seconds of a scan": sum(seconds) / len(seconds),
            }
        )
    return rows


def main(options: Options) -> None:
    """Runs what is missing."""
    done: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": []}
    runs = {f"{r['set']} {r['name']} {r['seed']}": r for r in done["runs"]}
    done |= result_head(
        __file__,
        "What the witnesses of a scan say of many networks",
        "one thread a network, other work beside it",
    )
    for key, row in finished(tasks(options, runs), options.executor):
        before = runs.get(key, {"witnesses": {}})["witnesses"]
        runs[key] = row | {"witnesses": before | row["witnesses"]}
        write_text(RESULTS, json.dumps(to_json(done | {"runs": list(runs.values())})) + "\n")
        print(key, {w: min(f["p"]) for w, f in row["witnesses"].items()}, flush=True)
    done |= {"runs": list(runs.values()), "summary": by_task(runs.values())}
    complete = [r for r in done["runs"] if set(WITNESSES) <= set(r["witnesses"])]
    null = {"version": VERSION, "networks": null_networks(complete)}
    write_text(RESULTS, json.dumps(to_json(done)) + "\n")
    write_json(NULL, null)


if __name__ == "__main__":
    main(tyro.cli(Options))
