"""How often the combined scan alarms falsely, and how often it sees a backdoor.

    python benchmarks/scan_power.py

Reads ``results/scan_null.json`` (null networks and the pool's development half),
``results/automatic.json`` (held-out half and third-party networks) and
``results/fresh_networks.json`` (scans of networks that the null was not made from), runs nothing,
and writes ``results/scan_power.json`` and ``src/bezoar/data/scan_power.json``, which every scan
quotes. A backdoor-free network of the null is judged by the *other* networks of the null. Several
looks at the same network, with other clean images, are averaged: they are no further networks.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from alarm_rates import LEVELS, at_levels
from fresh_networks import RESULTS as FRESH
from fresh_networks import false_alarms as alarms_of_fresh
from result_file import result_head
from scan_null import RESULTS as WITNESSED
from scan_null import null_networks

from bezoar.combining import MANY, smallest_of, tail_factor
from bezoar.metrics import auroc, rate
from bezoar.records import write_json
from bezoar.scanning import FEW_CLASSES, LARGE_IMAGES, WITHOUT_IMAGES, WITNESSES
from bezoar.statistics import harmonic_mean

FOLDER = Path(__file__).parent / "results"
POWER = Path(__file__).parents[1] / "src" / "bezoar" / "data" / "scan_power.json"
CHOICES = {
    "all witnesses": WITNESSES,
    "no images": WITHOUT_IMAGES,
    "no labels": tuple(w for w in WITNESSES if w not in ("rnp", "plane-waves")),
    "after a repair": tuple(w for w in WITNESSES if w not in WITHOUT_IMAGES),
}
CHOICES |= {
    f"{name}, small images": tuple(w for w in chosen if w not in LARGE_IMAGES)
    for name, chosen in CHOICES.items()
    if set(LARGE_IMAGES) & set(chosen)
}
# What a scan of the fresh networks asked, by the choice of witnesses.
SCANNED = {
    "all witnesses": {"images": True},
    "all witnesses, small images": {"images": True, "small": True},
    "no images": {"images": False},
}
# Attacks that a witness was made after, on other networks with them.
MADE_AFTER = {"adap-blend", "sig"}


def factor_of(networks: list[dict[str, Any]], witnesses: Sequence[str]) -> float:
    """The factor that these networks without a backdoor ask for."""
    return tail_factor([smallest_of(n["p"], witnesses, n["classes"]) for n in networks])


def false_alarms(
    few: list[dict[str, Any]],
    many: list[dict[str, Any]],
    chosen: Sequence[str],
    fewer: Sequence[str],
) -> dict[str, Any]:
    """Shares of networks without a backdoor at each level, by the number of classes."""
    alone: dict[int, list[float]] = {}
    for networks, witnesses in ((few, chosen), (many, fewer)):
        found = [smallest_of(n["p"], witnesses, n["classes"]) for n in networks]
        for i, (network, h) in enumerate(zip(networks, found, strict=True)):
            factor = tail_factor(found[:i] + found[i + 1 :])
            alone.setdefault(network["classes"], []).append(min(1.0, factor * h))
    rows = {str(classes): at_levels(alone[classes]) for classes in sorted(alone)}
    return rows | {"all": at_levels([p for own in alone.values() for p in own])}


def judged(
    run: dict[str, Any], witnesses: Sequence[str], networks: list[dict[str, Any]]
) -> dict[str, Any]:
    """What those of these witnesses that could look say together of one network.

    Args:
        run: of the network.
        witnesses: their names.
        networks: of the null, with about as many classes.
    """
    found = {w: run["witnesses"][w] for w in witnesses if w in run["witnesses"]}
    found = {w: row["p"] if isinstance(row, dict) else row for w, row in found.items()}
    rows, factor = found.values(), factor_of(networks, [*found])
    p_values = [min(1.0, factor * harmonic_mean(column)) for column in zip(*rows, strict=True)]
    first = min(range(len(p_values)), key=p_values.__getitem__)
    return {
        "model": run.get("model") or run["name"],
        "seed": run["seed"],
        "half": run["half"],
        "status": run["status"],
        "attack": run["attack"],
        "p": p_values[first],
        "first": first,
        "target": run["target"],
    }


def power(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Detection of the backdoored ones, false alarms on the others, and AUROC."""
    bad = [r for r in runs if r["status"] == "backdoored"]
    clean = [r for r in runs if r["status"] == "clean"]
    seeds = sorted({r["seed"] for r in runs})
    told: dict[str, Any] = {
        "backdoored": len({r["model"] for r in bad}),
        "clean": len({r["model"] for r in clean}),
        "seeds": len(seeds),
    }
    if bad:
        told |= {
            "attacks": len({r["attack"] for r in bad}),
            "flagged": share_of(bad, lambda r: r["p"] <= 0.05),
            "at 0.01": share_of(bad, lambda r: r["p"] <= 0.01),
            "right": share_of(bad, lambda r: r["first"] == r["target"]),
        }
    if clean:
        told["false alarms"] = {
            f"at {level:g}": share_of(clean, lambda r, level=level: r["p"] <= level)
            for level in LEVELS
        }
    if bad and clean:
        told["auroc"] = auroc_of(bad, clean)
    return told


def by_attack(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many looks at the backdoored ones flag them, for each attack.

    With one to three networks of an attack, counts tell more than shares. AUROC is against all
    backdoor-free ones.
    """
    clean = [r for r in runs if r["status"] == "clean"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run["status"] == "backdoored":
            groups.setdefault(run["attack"], []).append(run)
    return [
        {
            "attack": attack,
            "backdoored models": len({r["model"] for r in own}),
            "draws of images": len({r["seed"] for r in own}),
            "looks": len(own),
            **{f"flagged at {level:g}": sum(r["p"] <= level for r in own) for level in LEVELS},
            "class right": sum(r["first"] == r["target"] for r in own),
            "auroc": auroc_of(own, clean) if clean else None,
        }
        for attack, own in sorted(groups.items())
    ]


def auroc_of(bad: list[dict[str, Any]], clean: list[dict[str, Any]]) -> float:
    """The mean over the draws of images."""
    return statistics.fmean(
        float(auroc(*(torch.tensor([-r["p"] for r in kind if r["seed"] == seed])
                      for kind in (bad, clean))))
        for seed in sorted({r["seed"] for r in bad})
    )  # fmt: skip


def share_of(runs: list[dict[str, Any]], told: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The share of networks; each is as much of one as its looks say on average."""
    looks: dict[str, list[bool]] = {}
    for run in runs:
        looks.setdefault(run["model"], []).append(told(run))
    return rate(sum(map(statistics.fmean, looks.values())), len(looks)).as_record()


def lines(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A choice of witnesses as flat rows: false alarms by classes, then each half.

    Those of the null are judged by each other; the fresh ones no null was made from.
    """
    told = [
        {
            "asked": row["asked"],
            "models are": f"{kind}, {key} classes" if key != "all" else f"{kind}, all",
            "clean models": found["at 0.05"]["count"],
            "false alarms at 0.05": found["at 0.05"],
            "false alarms at 0.01": found["at 0.01"],
        }
        for kind, measured in (("backdoor-free", "false alarms"), ("not of the null", "fresh"))
        for key, found in row.get(measured, {}).items()
    ]
    for half in ("development", "held-out", "third-party"):
        if half in row:
            found = row[half]
            told.append(
                {
                    "asked": row["asked"],
                    "models are": f"of the pool, {half}" if half != "third-party" else half,
                    "clean models": found["clean"],
                    "false alarms at 0.05": found.get("false alarms", {}).get("at 0.05"),
                    "false alarms at 0.01": found.get("false alarms", {}).get("at 0.01"),
                    "backdoored models": found["backdoored"],
                    "draws of images": found["seeds"],
                    "flagged at 0.05": found.get("flagged"),
                    "flagged at 0.01": found.get("at 0.01"),
                    "class right": found.get("right"),
                    "auroc": found.get("auroc"),
                }
            )
    return told


def main() -> None:
    """Writes both files."""
    witnessed = json.loads(WITNESSED.read_text())["runs"]
    complete = [r for r in witnessed if set(WITNESSES) <= set(r["witnesses"])]
    null = null_networks(complete)
    automatic = FOLDER / "automatic.json"
    later = json.loads(automatic.read_text())["runs"] if automatic.exists() else []
    fresh = json.loads(FRESH.read_text())["runs"] if FRESH.exists() else []
    later = [r for r in later if r["clean images"] and not r["precaution"]]
    table: list[dict[str, Any]] = []
    many = [network for network in null if network["classes"] > MANY]
    few = [network for network in null if network["classes"] <= MANY]
    for name, chosen in CHOICES.items():
        fewer = [w for w in chosen if w not in FEW_CLASSES]
        rule = {False: (chosen, few), True: (fewer, many)}
        runs = [
            judged(run, *rule[run["classes"] > MANY])
            for run in (*(r for r in complete if r["set"] == "pool"), *later)
        ]
        row: dict[str, Any] = {
            "asked": name,
            "witnesses": list(chosen),
            "witnesses, many classes": fewer,
            "networks": len(null),
            "factor": factor_of(few, chosen),
            "factor, many classes": factor_of(many, fewer),
            "false alarms": false_alarms(few, many, chosen, fewer),
        }
        if fresh and name in SCANNED:
            row["fresh"] = alarms_of_fresh(fresh, **SCANNED[name])
        for half in ("development", "held-out", "third-party"):
            own = [r for r in runs if r["half"] == half]
            if own:
                row[half] = power(own)
        known = MADE_AFTER | {r["attack"] for r in runs if r["half"] == "development"}
        new = [r for r in runs if r["half"] == "held-out" and r["attack"] not in known]
        if new:
            row["held-out"]["new attacks"] = power(new)
        table.append(row | {"models": runs})
    told = result_head(__file__, "False alarms and power of the combined scan") | {
        "machine": "computed from scan_null.json, automatic.json and fresh_networks.json",
        "summary": [line for row in table[:2] for line in lines(row)],
        "by attack": [
            {"asked": row["asked"]} | line
            for row in table[:2]
            for line in by_attack([r for r in row["models"] if r["half"] == "held-out"])
        ],
        "runs": [{"asked": row["asked"]} | model for row in table for model in row["models"]],
    }
    write_json(FOLDER / "scan_power.json", told)
    short = [{k: v for k, v in row.items() if k != "models"} for row in table]
    write_json(POWER, {"version": 1, "power": short})


if __name__ == "__main__":
    main()
