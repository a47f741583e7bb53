"""Does unlearning bring back a backdoor that a repair removed, and does the audit see it?

    python benchmarks/reexposure.py [--models 10]

Digit networks with a patch are repaired by every method. Then the repaired network is unlearned to
half and a quarter of its accuracy: the ASR there shows what was only hidden. The clean twin under
the same trigger and the same unlearning is the control: a half-unlearned network answers much with
one class, whatever the trigger. Writes ``results/reexposure.json`` after each network; a rerun does
what is missing.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from false_alarms import attack_of, trained
from result_file import result_head

from bezoar.attacks import Attack
from bezoar.audit import audit
from bezoar.classifier import Classifier
from bezoar.demo import load_digits
from bezoar.evaluation import evaluate
from bezoar.images import ImageSet
from bezoar.methods import RNP, methods
from bezoar.methods.rnp_unlearning import unlearn
from bezoar.records import to_json, write_json

RESULTS = Path(__file__).parent / "results" / "reexposure.json"
FIRST_SEED = 6000
LEVELS = (0.5, 0.25)


@dataclass
class Options:
    """What to run.

    Attributes:
        models: how many networks.
        methods: the repairs.
        threads: of torch.
    """

    models: int = 10
    methods: tuple[str, ...] = ("ft", "tac", "neural-cleanse", "rnp")
    threads: int = 1


def measured(
    classifier: Classifier, clean: ImageSet, test: ImageSet, attack: Attack, seed: int
) -> dict[str, Any]:
    """ASR as it is and after unlearning, and what the audit says."""
    run = unlearn(classifier, clean, RNP().unlearning, seed=seed)
    row: dict[str, Any] = {"asr": evaluate(classifier, test, attack).asr}
    for level in LEVELS:
        row[f"asr at {level:g}"] = evaluate(run.at(level), test, attack).asr
    finding = audit(classifier, clean, seed=seed)
    return row | {key: finding.record["audit"][key] for key in ("outcome", "p", "class")}


def one(seed: int, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """All rows of one network."""
    planted, clean, facts = trained("bad-nets", seed)
    twin, _, _ = trained("clean", seed)
    _, _, test = load_digits(seed=seed)
    attack = attack_of("bad-nets", seed)
    assert attack is not None
    rows = []
    for name in ("clean twin", "not repaired", *names):
        model = {"clean twin": twin, "not repaired": planted}.get(name)
        if model is None:
            model = methods.get(name)().remove(planted, clean, seed=seed).classifier
        row = {"seed": seed, "repaired by": name, "norm": facts["norm"], "target": facts["target"]}
        rows.append(row | measured(model, clean, test, attack, seed))
    return rows


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the networks."""
    rows = []
    for name in dict.fromkeys(r["repaired by"] for r in runs):
        chosen = [r for r in runs if r["repaired by"] == name]
        row: dict[str, Any] = {"name": name, "counted": len(chosen)}
        for key in ("asr", *(f"asr at {level:g}" for level in LEVELS)):
            values = [r[key] for r in chosen]
            row[key] = {"mean": statistics.fmean(values), "highest": max(values)}
        row["re-exposed"] = sum(r["outcome"] == "re-exposed" for r in chosen)
        rows.append(row)
    return rows


def main(options: Options) -> None:
    """Runs what is missing."""
    torch.set_num_threads(options.threads)
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    runs: list[dict[str, Any]] = done.get("runs", [])
    known = {run["seed"] for run in runs}
    for seed in range(FIRST_SEED, FIRST_SEED + options.models):
        if seed in known:
            continue
        runs += to_json(one(seed, options.methods))
        record = result_head(
            __file__,
            "Re-exposure: what unlearning brings back of repaired digit networks",
            f"{options.threads} thread(s)",
        ) | {"summary": summary(runs), "runs": runs}
        write_json(RESULTS, record)
        for row in runs[-len(options.methods) - 2 :]:
            print(row, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
