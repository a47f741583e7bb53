"""``bezoar clean`` without a method: what it says, keeps and leaves of the attack.

    BEZOAR_DATA=... python benchmarks/automatic.py [--half held-out] [--sets pool third-party]
    BEZOAR_DATA=... python benchmarks/automatic.py --sets pool --seeds 0 1 2
    BEZOAR_DATA=... python benchmarks/automatic.py --images 0

Each model is scanned, cleaned and scanned again with one fixed setting and 500 clean images of the
test file, or without any; the true trigger is used afterwards, on 2,000 images that took no part,
and put on them for the clean twin as well, which tells what the trigger hides of an image. What was
not accepted, and what was left untouched because nothing was found, counts as the model was.

The repairs and their order were chosen on the pool's development half. Some rules were not: that a
trigger carries only what does not go to its class without it was set after a look at the trials of
two held-out models (``trojan-watermark`` and ``l0-inv`` on CIFAR-10), without their true ASR, and
that a repair which tuning undoes does not end the search after one third-party model
(``ibau_cifar10_badnets``, seed 1) had been left with a live backdoor, of which its after-care had
said that tuning brings it back. Two witnesses were made after an attack had been missed, on other
networks with it: ``plane-waves`` after ``sig``, which had never been found, and ``smooth-pattern``
after ``adap-blend``, missed at one of three draws. ``summary`` tells the half without both as well.

**The runs with 500 images and without precaution were all made anew**, each set of models at one
commit after all of this and after ``clean`` came to average three unlearnings
(``mean_of_runs.py``). The others are older and do not tell their processor, and of them only those
were made again that a change could reach. The runs without images and under precaution make no such
mean. Where their suspects stayed as they were, the seconds and rescans of these older runs are
those of six or seven witnesses; their p-values were combined anew with each witness that came.

Each run is written to ``results/automatic.json`` at once, and a rerun does only what is missing.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from automatic_looking import look
from finished_tasks import finished
from measured_models import third_party_names
from pool_methods import POOL
from result_file import machine_of, result_head
from scan_power import MADE_AFTER

from bezoar.aftercare import Probe
from bezoar.bench.summary import is_removed
from bezoar.executors import Task
from bezoar.pools import open_pool
from bezoar.records import write_json
from bezoar.surviving import DEAD

RESULTS = Path(__file__).parent / "results" / "automatic.json"
WHERE = "one thread a model, other work beside it"


@dataclass
class Options:
    """What to run.

    Attributes:
        sets: of networks, in this order.
        half: of the pool.
        models: names; by default all.
        seeds: each draws other clean images.
        images: clean images; 0 cleans without any.
        precaution: clean models in which nothing was found, too.
        executor: where, and how many side by side.
        out: the result file.
        enter: another result file of this script, made from a copy of one commit for example: its
            runs take the place of those of the same network, seed and setting.
    """

    sets: tuple[Literal["pool", "third-party"], ...] = ("pool", "third-party")
    half: Literal["development", "held-out"] = "held-out"
    models: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    images: int = 500
    precaution: bool = False
    executor: str = "local:2"
    out: Path = RESULTS
    enter: Path | None = None


def subjects(options: Options) -> Iterator[tuple[str, str, int]]:
    """Set, name and seed of each run."""
    for seed in options.seeds:
        for kind in options.sets:
            if kind == "pool":
                entries = open_pool(POOL).half(options.half)
                names = [e.name for e in entries if e.status in ("clean", "backdoored")]
            else:
                names = third_party_names()
            yield from ((kind, n, seed) for n in names if not options.models or n in options.models)


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means for each half, number of images, with and without precaution, and each seed.

    The held-out half is there once more without the attacks that a witness was made after.
    """

    def kind_of(run: dict[str, Any]) -> tuple[str, int, bool, int]:
        return run["half"], -run["clean images"], run["precaution"], run["seed"]

    if any(run["attack"] in MADE_AFTER for run in runs):
        runs = runs + [
            run | {"half": f"held-out, without {', '.join(sorted(MADE_AFTER))}"}
            for run in runs
            if run["half"] == "held-out" and run["clean images"] and not run["precaution"]
            if run["attack"] not in MADE_AFTER
        ]
    rows = []
    for kind in sorted(set(map(kind_of, runs))):
        own = [r for r in runs if kind_of(r) == kind]
        bad = [r for r in own if r["status"] == "backdoored"]
        clean = [r for r in own if r["status"] == "clean"]
        row: dict[str, Any] = {
            "half": kind[0],
            "clean images": -kind[1],
            "precaution": kind[2],
            "seed": kind[3],
            "backdoored": len(bad),
            "clean": len(clean),
            "flagged": sum(r["verdict"] != "nothing found" for r in bad),
            "found": sum(r["verdict"] == "backdoor found" for r in bad),
            "target right": sum(r["first"] == r["target"] for r in bad),
            "false alarms": sum(r["verdict"] != "nothing found" for r in clean),
            "seconds": statistics.fmean(r["processor seconds"] for r in own),
        }
        if bad:
            attacks: dict[str, list[float]] = {}
            for r in bad:
                attacks.setdefault(r["attack"], []).append(r["der"])
            twins = [_hidden(r["twin"]) for r in bad if r["twin"]]
            flagged = [r for r in bad if r["verdict"] != "nothing found"]
            row |= {
                "acc drop": statistics.fmean(_lost(r) for r in bad),
                "acc drop, as told": statistics.fmean(map(_told, bad))
                if row["clean images"]
                else None,
                "asr after": statistics.fmean(_after(r, "asr") for r in bad),
                "acc less ra after": statistics.fmean(_hidden(r["after"]) for r in bad),
                "acc less ra, twin": _mean(twins),
                "der": statistics.fmean(r["der"] for r in bad),
                "removed": sum(is_removed(_after(r, "asr"), _lost(r)) for r in bad),
                "asr after, flagged": _mean([_after(r, "asr") for r in flagged]),
                "der, flagged": _mean([r["der"] for r in flagged]),
                "worst der": min(r["der"] for r in bad),
                "worst attack's der": min(map(statistics.fmean, attacks.values())),
            }
        if clean:
            row["acc drop, clean"] = statistics.fmean(_lost(r) for r in clean)
        rows.append(row)
    return rows


def told_too_little(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """By how much the measured loss of accuracy exceeds the told one, over the repairs kept."""
    kept = [r for r in runs if r["kept"] is not None and not r["precaution"]]
    errors = [_lost(r) - _told(r) for r in kept]
    if not errors:
        return {}
    return {
        "repairs kept": len(errors),
        "acc drop beyond the told one, mean": statistics.fmean(errors),
        "acc drop beyond the told one, root mean square": statistics.fmean(e * e for e in errors)
        ** 0.5,
    }


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _lost(run: dict[str, Any]) -> float:
    return float(run["before"]["acc"]["value"]) - _after(run, "acc")


def _told(run: dict[str, Any]) -> float:
    """The loss that the held-out images told of the repair that they chose."""
    kept = run["kept"]
    return float(run["trials"][kept]["accuracy_drop"]) if kept is not None else 0.0


def _after(run: dict[str, Any], what: str) -> float:
    return float(run["after"][what]["value"])


def _hidden(scores: dict[str, Any]) -> float:
    """The share of images whose class the trigger hides."""
    return float(scores["acc"]["value"]) - float(scores["ra"]["value"])


def tuned(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """How often dead triggers carry a part once more after some tuning, and what that says.

    ``aftercare.Probe`` has the words for it; ``is_removed`` the limit of an ASR.
    """
    kept = [r for r in runs if r["kept"] is not None and not r["precaution"] and r["clean images"]]
    told = [(run, run["aftercare"]["probe"]) for run in kept if run["aftercare"]["probe"]]
    probes = [(run, Probe(probe["before"], probe["after"])) for run, probe in told]
    dead = [(run, p) for run, p in probes if p.before <= DEAD and p.after is not None]
    partly = [_after(run, "asr") for run, p in dead if p.revived is not None]
    return {
        "repairs that left triggers dead": len(dead),
        "back with tuning": sum(bool(p.returned) for _, p in dead),
        "in part back": len(partly),
        "asr of these": sorted(partly),
    }


Key = tuple[str, str, int, int, bool]


def key_of(run: dict[str, Any]) -> Key:
    """What no two runs of a file share."""
    return run["set"], run["model"], run["seed"], run["clean images"], run["precaution"]


def entered(runs: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``runs`` with those of ``others`` in the place of their own kind, or behind them."""
    return list(({key_of(r): r for r in runs} | {key_of(r): r for r in others}).values())


def main(options: Options) -> None:
    """Runs what is missing."""
    done: dict[str, Any] = {"runs": []}
    if options.out.exists():
        done = json.loads(options.out.read_text())
    runs: list[dict[str, Any]] = done["runs"]
    if options.enter:
        runs = entered(runs, json.loads(options.enter.read_text())["runs"])
    known = set(map(key_of, runs))
    tasks = [
        Task(
            key=f"{kind} {name} {seed}",
            function=look,
            arguments={
                "kind": kind,
                "name": name,
                "seed": seed,
                "images": options.images,
                "precaution": options.precaution,
            },
        )
        for kind, name, seed in subjects(options)
        if (kind, name, seed, options.images, options.precaution) not in known
    ]
    done |= result_head(__file__, "Cleaning without naming a method")
    for key, row in finished(tasks, options.executor):
        runs.append(row)
        _write(options.out, done, runs)
        print(
            key,
            row["verdict"],
            f"first {row['first']} of {row['target']}",
            row["kept"],
            row["method"],
            [(t["steps"], t["accuracy_drop"], t["survival"]) for t in row["trials"]],
            row["before"],
            row["after"],
            row.get("der"),
            row["processor seconds"],
            flush=True,
        )
    _write(options.out, done, runs)  # where nothing was missing, the summary is made anew


def _write(out: Path, done: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    whole = done | {"machine": machine_of(runs, WHERE), "runs": runs}
    figures = {"summary": summary(runs), "told": told_too_little(runs), "tuned": tuned(runs)}
    write_json(out, whole | figures)


if __name__ == "__main__":
    main(tyro.cli(Options))
