"""Scans and repairs the third-party checkpoints with 500 clean images; measures on the rest.

    BEZOAR_DATA=... python benchmarks/third_party.py [--methods tac ft] [--seeds 0 1 2]

Nobody here trained these networks. Their triggers are used by the evaluation alone, after the
repair; they had no part in choosing any method, threshold or setting. Each run is written to
``results/third_party.json`` at once, and a rerun does only what is missing.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from pool_methods import refuse_public
from result_file import result_head

from bezoar.attacks import StoredPattern
from bezoar.evaluation import compare, evaluate
from bezoar.images import ImageSet
from bezoar.intake import LoadedModel, ModelDescription, load_model
from bezoar.methods import TAC
from bezoar.metrics import accuracy
from bezoar.pipeline import clean, scan
from bezoar.records import write_json

RESULTS = Path(__file__).parent / "results" / "third_party.json"
CLEAN_IMAGES = 500
SCAN = "scan, tac alone"  # what every witness says stands in automatic.json


@dataclass
class Options:
    """What to run.

    Attributes:
        methods: the methods to repair with; none only scans. ``tac-oracle`` is TAC told the true
            target class: what its removal could do if the scan were always right.
        seeds: each draws other clean images.
        models: names of the checkpoints; by default all.
        images: clean images of each draw.
        threads: of torch.
    """

    methods: tuple[str, ...] = ("tac", "ft", "rnp", "tac-oracle")
    seeds: tuple[int, ...] = (0, 1, 2)
    models: tuple[str, ...] = ()
    images: int = CLEAN_IMAGES
    threads: int = 1


def checkpoints(root: Path) -> list[Path]:
    """The folders of the third-party checkpoints below the data folder."""
    return sorted(f for f in (root / "models").iterdir() if (f / "model.json").exists())


def load(folder: Path) -> tuple[LoadedModel, dict[str, Any]]:
    """The model in ``folder`` and its facts."""
    facts = json.loads((folder / "model.json").read_text())
    architecture = facts["architecture"]
    description = ModelDescription(
        architecture=f"{folder / architecture['file']}:build",
        weights=str(folder / "model.safetensors"),
        input_size=(32, 32),
        mean=tuple(facts["preprocessing"]["mean"]),
        std=tuple(facts["preprocessing"]["std"]),
        arguments=architecture["arguments"],
    )
    return load_model(description), facts


def test_images(root: Path, facts: dict[str, Any]) -> ImageSet:
    """The whole test file of the model's data set, cropped as its model was trained."""
    name = {"CIFAR-10": "cifar10", "GTSRB": "gtsrb"}[facts["dataset"]]
    box = facts["preprocessing"].get("crop")
    return ImageSet.from_parquet(root / name / "test.parquet", channels=3, box_column=box)


def main(options: Options) -> None:
    """Runs what is missing."""
    refuse_public(options.methods)
    torch.set_num_threads(options.threads)
    root = Path(os.environ["BEZOAR_DATA"])
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": []}
    done |= result_head(
        __file__,
        "Third-party checkpoints, clean images of the test file, measured on the rest",
        f"{options.threads} thread(s)",
    )
    known = {
        (run["model"], run["method"], run["seed"], run["clean images"]) for run in done["runs"]
    }
    images: dict[str, ImageSet] = {}
    for folder in checkpoints(root):
        if options.models and folder.name not in options.models:
            continue
        loaded, facts = load(folder)
        data = facts["dataset"]
        if data not in images:
            images[data] = test_images(root, facts)
        everything = images[data]
        methods = (SCAN, *(options.methods if facts["backdoored"] else options.methods[:1]))
        for seed in options.seeds:
            part, rest = everything.split(options.images / len(everything), seed=seed)
            attack = None
            if facts["backdoored"]:
                attack = StoredPattern(
                    file=str(folder / "trigger.npy"), target=facts["attack"]["target"]
                )
            for method in methods:
                if (folder.name, method, seed, len(part)) in known:
                    continue
                started = time.perf_counter()
                row: dict[str, Any] = {"model": folder.name, "method": method, "seed": seed}
                row["clean images"] = len(part)
                if method == SCAN:
                    finding = scan(loaded.classifier, part, seed=seed, witnesses=["tac"])
                    row["verdict"] = finding.verdict.value
                    row["first"] = finding.ranking[0]
                    row["p"] = finding.p_values[finding.ranking[0]]
                    if attack is not None:
                        row["target"] = attack.target
                        row["rank of target"] = finding.ranking.index(attack.target) + 1
                        row["p of target"] = finding.p_values[attack.target]
                    row["seconds"] = time.perf_counter() - started
                else:
                    chosen: str | TAC = method
                    if method == "tac-oracle":
                        if attack is None:
                            continue
                        chosen = TAC(target_class=attack.target)
                    repair = clean(
                        loaded.classifier, part, method=chosen, witnesses=["tac"], seed=seed
                    )
                    row["seconds"] = time.perf_counter() - started
                    row["accepted"] = repair.record["accepted"]
                    row["rescan"] = repair.record["rescan"]["verdict"]
                    if attack is not None:
                        before = evaluate(loaded.classifier, rest, attack)
                        after = evaluate(repair.classifier, rest, attack)
                        removed = repair.record["repair"].get("target_class")
                        if removed is not None:
                            row["target found"] = removed == attack.target
                        facts_of_attack = ("name", "description")
                        compared = compare(attack, before, after)
                        row |= {k: v for k, v in compared.items() if k not in facts_of_attack}
                    else:
                        labels = rest.require_labels("measuring").to(loaded.classifier.device)
                        for when, model in (
                            ("before", loaded.classifier),
                            ("after", repair.classifier),
                        ):
                            answers = model.logits(rest).argmax(1)
                            row[when] = {"acc": accuracy(answers, labels).as_record()}
                done["runs"].append(row)
                write_json(RESULTS, done)
                shown = {k: v for k, v in row.items() if not isinstance(v, dict)}
                for when in ("before", "after"):
                    if when in row:
                        shown[when] = {k: round(v["value"], 4) for k, v in row[when].items()}
                print(shown, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
