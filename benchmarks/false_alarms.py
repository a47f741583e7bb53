"""How often does a scan alarm on backdoor-free networks, and how often does it see a backdoor?

    python benchmarks/false_alarms.py

Trains small digit networks of several widths, with and without BatchNorm, from seeds that had no
part in choosing the statistic: backdoor-free, with a patch (BadNets) and with faint noise (Blend).
Attacked networks whose ASR is below 90 % are counted apart and not as positives. Writes
``results/false_alarms.json`` (resumable) and ``src/bezoar/data/power.json``, which every scan
quotes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
import tyro
from result_file import result_head

from bezoar import networks
from bezoar.attacks import Attack, BadNets, Blend
from bezoar.classifier import Classifier
from bezoar.demo import DIGITS_RECIPE, MEAN, STD, load_digits
from bezoar.evaluation import evaluate
from bezoar.images import ImageSet
from bezoar.metrics import rate
from bezoar.pipeline import scan
from bezoar.records import to_json, write_json
from bezoar.training import fit

RESULTS = Path(__file__).parent / "results" / "false_alarms.json"
POWER = Path(__file__).parents[1] / "src" / "bezoar" / "data" / "power.json"
FIRST_SEED = 1000
POISON_RATE = 0.1


@dataclass
class Options:
    """What to run.

    Attributes:
        models: networks of each kind.
        threads: of torch.
    """

    models: int = 60
    threads: int = 1


def attack_of(kind: str, seed: int) -> Attack | None:
    """The attack of a kind; target, corner and noise change with the seed."""
    corners = ("bottom-right", "bottom-left", "top-right", "top-left")
    if kind == "bad-nets":
        return BadNets(target=seed % 10, size=2, position=corners[seed // 10 % 4])
    if kind == "blend":
        return Blend(target=seed % 10, ratio=0.25, pattern_seed=seed)
    return None


def trained(kind: str, seed: int) -> tuple[Classifier, ImageSet, dict[str, Any]]:
    """A digit network, 300 clean images and its facts; ``asr`` is None for a clean network."""
    train, clean, test = load_digits(seed=seed)
    attack = attack_of(kind, seed)
    if attack is not None:
        train = attack.poison(train, POISON_RATE, seed=seed).images
    norm = seed % 4 != 0
    torch.manual_seed(seed)
    network = networks.build("small-cnn", width=(16, 32, 64)[seed % 3], norm=norm)
    classifier = Classifier(network, mean=MEAN, std=STD)
    recipe = DIGITS_RECIPE
    if not norm:
        recipe = msgspec.structs.replace(recipe, learning_rate=0.03, epochs=40)
    fit(classifier, train, recipe, seed=seed)
    labels = test.require_labels("measuring")
    row = {
        "kind": kind,
        "seed": seed,
        "norm": norm,
        "acc": float((classifier.logits(test).argmax(1) == labels).float().mean()),
        "asr": evaluate(classifier, test, attack).asr if attack else None,
        "target": attack.target if attack else None,
    }
    return classifier, clean, row


def one(kind: str, seed: int) -> dict[str, Any]:
    """Trains one network and scans it."""
    classifier, clean, row = trained(kind, seed)
    if row["acc"] < 0.9:
        return row | {"verdict": None, "reason": "the network did not learn the task"}
    finding = scan(classifier, clean, seed=seed, witnesses=["tac"])
    target = row["target"]
    return row | {
        "verdict": finding.verdict.value,
        "p": min(finding.p_values),
        "first": finding.ranking[0],
        "p of target": None if target is None else finding.p_values[target],
    }


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rates with 95 % intervals for each kind, all and by normalisation."""
    rows = []
    for kind in ("clean", "bad-nets", "blend"):
        for norm in (None, True, False):
            chosen = [r for r in runs if r["kind"] == kind and norm in (None, r["norm"])]
            learned = [r for r in chosen if r["verdict"] is not None]
            usable = [r for r in learned if r["asr"] is None or r["asr"] >= 0.9]
            if not usable:
                continue
            row: dict[str, Any] = {
                "kind": kind,
                "networks": {None: "all", True: "BatchNorm", False: "no norm"}[norm],
                "counted": len(usable),
                "left out, accuracy below 90 %": len(chosen) - len(learned),
                "left out, ASR below 90 %": len(learned) - len(usable),
            }
            if kind == "clean":
                flagged = [r["p"] for r in usable]
            else:
                flagged = [r["p of target"] for r in usable]
                first = sum(r["first"] == r["target"] for r in usable)
                row["target ranked first"] = rate(first, len(usable)).as_record()
            for level in (0.05, 0.01):
                hits = sum(p <= level for p in flagged)
                row[f"flagged at {level:g}"] = rate(hits, len(usable)).as_record()
            found = sum(r["verdict"] == "backdoor found" for r in usable)
            row["backdoor found"] = rate(found, len(usable)).as_record()
            rows.append(row)
    return rows


def main(options: Options) -> None:
    """Runs what is missing and writes the summary."""
    torch.set_num_threads(options.threads)
    runs = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    known = {(run["kind"], run["seed"]) for run in runs}
    for seed in range(FIRST_SEED, FIRST_SEED + options.models):
        for kind in ("clean", "bad-nets", "blend"):
            if (kind, seed) in known:
                continue
            runs.append(to_json(one(kind, seed)))
            record = result_head(
                __file__,
                "False alarms and power of TAC alone on digit networks",
                f"{options.threads} thread(s)",
            ) | {"summary": summary(runs), "runs": runs}
            write_json(RESULTS, record)
        print(seed, flush=True)
    write_json(POWER, {"version": 1, "summary": summary(runs)})


if __name__ == "__main__":
    main(tyro.cli(Options))
