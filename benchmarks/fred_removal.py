"""I-BAU on samples from FreD's inversion, on those of its controls, and on real clean images.

    BEZOAR_DATA=... python benchmarks/fred_removal.py --generator FILE.toml [--arms ...]

Every arm gets the same number of images and the same removal; only where they come from differs:

- ``real``: clean images of the task with their true labels, what no user of FreD has; ``real,
  implicit term``: the same with K = 5 in I-BAU, which the default leaves out; ``real, published``:
  I-BAU's released notebooks, made for 5,000 images.
- ``inverted``: samples of the whole objective, alone; ``no parameter stability``, ``no input
  stability``, ``no stability`` and ``class only`` (no prior, no selection either) leave terms out.
- ``fred``: the default where public images are given: ``inverted``, and as many public images that
  the suspect labels. The only arm with more images than the others.
- ``random``: random images of the generator; ``public``: public images; ``pixels``: searched in
  pixels. The suspect labels them.

The generator comes from ``bezoar generator train`` on Tiny ImageNet and never saw a suspect. The
images that are measured on took no part in anything. ``samples`` holds what is known of the samples
when the trigger is known (``sample_checks``), which no method is told. Each run is written to
``results/fred_removal.json`` at once, and a rerun does only what is missing.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
import tyro
from pool_methods import FAMILIES, clean_accuracy, parts, spread
from result_file import result_head
from third_party import checkpoints, load, test_images

from bezoar.attacks import Attack, StoredPattern
from bezoar.classifier import Classifier
from bezoar.evaluation import compare, evaluate
from bezoar.generators import load_generator
from bezoar.generators.public_generator import PublicGenerator
from bezoar.images import ImageSet
from bezoar.methods import IBAU, FreD
from bezoar.methods.fred_selection import Selection
from bezoar.methods.fred_sources import Samples, accompanied, labelled
from bezoar.methods.implicit_hypergradient import Implicit
from bezoar.pools import open_pool
from bezoar.records import to_json, write_json
from bezoar.sample_checks import check_samples

RESULTS = Path(__file__).parent / "results" / "fred_removal.json"
POOL = Path(__file__).parent / "pool"
TEST_IMAGES = 2000
THIRD_PARTY = "third party"
EVALUATORS = {"cifar10": "akamaster_cifar10_resnet20_clean"}
UNSELECTED = Selection(least_score=-1.0, least_confidence=0.0, similarity=1.0, augmentations=1)

Arm = Literal[
    "real",
    "real, implicit term",
    "real, published",
    "fred",
    "inverted",
    "no parameter stability",
    "no input stability",
    "no stability",
    "class only",
    "random",
    "public",
    "pixels",
]


@dataclass
class Options:
    """What to run.

    Attributes:
        generator: as ``bezoar generator train`` wrote it, for images of 32x32.
        arms: where the samples come from.
        half: of the pool, or the checkpoints that others trained.
        seeds: of samples and removal.
        images: for each removal.
        models: a part of the names; by default all.
        threads: of torch.
        pool: its folder.
        out: the result file.
        samples: a folder for the samples that were searched, which other arms and reruns take.
    """

    generator: Path
    arms: tuple[Arm, ...] = ("real", "fred", "inverted", "public", "random", "pixels")
    half: Literal["development", "held-out", "third party"] = "held-out"
    seeds: tuple[int, ...] = (0,)
    images: int = 500
    models: tuple[str, ...] = ()
    threads: int = 1
    pool: Path = POOL
    out: Path = RESULTS
    samples: Path | None = None


@dataclass
class Suspect:
    """A model, its trigger if it has one, clean images and test images."""

    name: str
    data: str
    half: str
    status: str
    family: str | None
    classifier: Classifier
    attack: Attack | None
    target: int | None
    clean: ImageSet
    test: ImageSet


def method(arm: Arm, images: int) -> FreD:
    """FreD as the arm wants it."""
    fred = FreD(count=images, companions=1.0 if arm == "fred" else 0.0)
    search = fred.inversion
    without: dict[str, Any] = {
        "no parameter stability": {"parameter_weight": 0.0},
        "no input stability": {"input_weight": 0.0},
        "no stability": {"parameter_weight": 0.0, "input_weight": 0.0},
        "class only": {"parameter_weight": 0.0, "input_weight": 0.0, "prior_weight": 0.0},
    }
    if arm in ("random", "public", "pixels"):
        return msgspec.structs.replace(fred, samples=arm)
    fred = msgspec.structs.replace(
        fred, inversion=msgspec.structs.replace(search, **without.get(arm, {}))
    )
    if arm == "class only":
        fred = msgspec.structs.replace(fred, selection=UNSELECTED, tried=1.0)
    return fred


def one(
    suspect: Suspect,
    arm: Arm,
    seed: int,
    options: Options,
    generator: PublicGenerator,
    public: ImageSet,
    evaluator: Classifier | None,
) -> dict[str, Any]:
    """One removal and its measurement."""
    classifier = suspect.classifier
    classifier.trace(suspect.test.shape)
    started, used = time.perf_counter(), time.process_time()
    known: dict[str, Any] = {}
    removal = IBAU()
    if arm == "real, implicit term":
        removal = IBAU(implicit=Implicit(terms=5))
    elif arm == "real, published":
        removal = IBAU.published() if suspect.data == "cifar10" else IBAU.published_gtsrb()
    if arm.startswith("real"):
        images = suspect.clean.sample(options.images, seed=seed)
    else:
        samples = gathered(suspect, arm, seed, options, generator, public)
        images = samples.images
        keys = ("kept", "tried", "missing", "short", "quantiles", "images_per_minute", "shares")
        known = {key: samples.record[key] for key in keys if key in samples.record}
    spent = time.process_time() - used
    repair = removal.remove(classifier, images, seed=seed)
    row: dict[str, Any] = {
        "model": suspect.name,
        "half": suspect.half,
        "data": suspect.data,
        "status": suspect.status,
        "arm": arm,
        "seed": seed,
        "asked": options.images,
        "images": len(images),
        "seconds": time.perf_counter() - started,
        "processor seconds": time.process_time() - used,
        "processor seconds of the samples": spent,
        "samples": known,
        "rounds": len(repair.record["rounds"]) - 1,
    }
    if suspect.attack is None:
        for when, model in (("before", classifier), ("after", repair.classifier)):
            row[when] = {"acc": clean_accuracy(model, suspect.test)}
        return row
    known["checks"] = check_samples(
        images, suspect.attack, evaluator=evaluator, suspect=classifier, seed=seed
    )
    before, after = (
        evaluate(model, suspect.test, suspect.attack) for model in (classifier, repair.classifier)
    )
    compared = compare(suspect.attack, before, after)
    row |= {key: compared[key] for key in ("before", "after", "der")}
    return row | {"family": suspect.family, "target": suspect.target}


def gathered(
    suspect: Suspect,
    arm: Arm,
    seed: int,
    options: Options,
    generator: PublicGenerator,
    public: ImageSet,
) -> Samples:
    """The samples of an arm; those of ``inverted`` also serve ``fred``."""
    classifier = suspect.classifier
    if arm in ("random", "public", "pixels"):
        return method(arm, options.images).gather(classifier, generator, public, seed=seed)
    if arm == "fred":
        found = gathered(suspect, "inverted", seed, options, generator, public)
        per_class = -(-options.images // classifier.num_classes)
        return accompanied(found, labelled(classifier, public, per_class=per_class, seed=seed))
    name = f"{suspect.name} {arm} {seed} {options.images}.pt"
    kept = options.samples / name if options.samples else None
    if kept is not None and kept.exists():
        pixels, labels, record = torch.load(kept, weights_only=True)
        return Samples(ImageSet(pixels, labels, classifier.classes), record)
    found = method(arm, options.images).gather(classifier, generator, None, seed=seed)
    if kept is not None:
        kept.parent.mkdir(exist_ok=True)
        held = (found.images.images, found.images.require_labels("keeping"), found.record)
        torch.save(held, kept)
    return found


def suspects(options: Options) -> Iterator[Suspect]:
    """The models, one after the other."""
    root = Path(os.environ["BEZOAR_DATA"])

    def wanted(name: str) -> bool:
        return not options.models or any(part in name for part in options.models)

    if options.half == THIRD_PARTY:
        for folder in filter(lambda f: wanted(f.name), checkpoints(root)):
            loaded, facts = load(folder)
            everything = test_images(root, facts)
            test, clean = everything.split(TEST_IMAGES / len(everything), seed=12345)
            target = facts["attack"]["target"] if facts["backdoored"] else None
            yield Suspect(
                folder.name,
                {"CIFAR-10": "cifar10", "GTSRB": "gtsrb"}[facts["dataset"]],
                THIRD_PARTY,
                "backdoored" if facts["backdoored"] else "clean",
                folder.name if facts["backdoored"] else None,
                loaded.classifier,
                None
                if target is None
                else StoredPattern(file=str(folder / "trigger.npy"), target=target),
                target,
                clean,
                test,
            )
        return
    pool = open_pool(options.pool)
    for entry in pool.half(options.half):
        if wanted(entry.name):
            clean, test = parts(entry.data)
            yield Suspect(
                entry.name,
                entry.data,
                entry.half,
                entry.status,
                FAMILIES.get(entry.attack, "other") if entry.attack else None,
                pool.load(entry).classifier,
                pool.attack(entry) if entry.attack else None,
                entry.target,
                clean,
                test,
            )


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means and spreads over models and seeds for each arm."""
    rows = []
    keys = ("half", "status", "family", "asked", "arm")
    for group in sorted({tuple(r.get(key) for key in keys) for r in runs}, key=str):
        half, status, family, asked, arm = group
        chosen = [r for r in runs if tuple(r.get(key) for key in keys) == group]
        drops = [r["before"]["acc"]["value"] - r["after"]["acc"]["value"] for r in chosen]
        row: dict[str, Any] = {
            "models are": status,
            "half": half,
            "family": family,
            "samples": arm,
            "images": asked,
            "models": len({r["model"] for r in chosen}),
            "runs": len(chosen),
            "acc drop": spread(drops),
        }
        if status != "clean":
            row["asr before"] = statistics.fmean(r["before"]["asr"]["value"] for r in chosen)
            row["asr after"] = spread([r["after"]["asr"]["value"] for r in chosen])
            row["ra after"] = statistics.fmean(r["after"]["ra"]["value"] for r in chosen)
        rows.append(row)
    return rows


def beside_real(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each arm against real images on the same backdoored models and seeds, in points of 100."""
    real = {
        (r["model"], r["seed"], r["asked"]): r
        for r in runs
        if r["arm"] == "real" and r["status"] != "clean"
    }
    rows: list[dict[str, Any]] = []
    for half, arm in sorted({(r["half"], r["arm"]) for r in runs if r["arm"] != "real"}):
        pairs = [
            (r, real[r["model"], r["seed"], r["asked"]])
            for r in runs
            if r["arm"] == arm and r["half"] == half and (r["model"], r["seed"], r["asked"]) in real
        ]
        if not pairs:
            continue
        gaps = {
            key: [100 * (a["after"][key]["value"] - b["after"][key]["value"]) for a, b in pairs]
            for key in ("acc", "asr")
        }
        rows.append(
            {
                "half": half,
                "samples": arm,
                "runs": len(pairs),
                "acc, beside real images": statistics.fmean(gaps["acc"]),
                "asr, beside real images": statistics.fmean(gaps["asr"]),
                "within 3 points of acc and 10 of asr": sum(
                    acc >= -3 and asr <= 10
                    for acc, asr in zip(gaps["acc"], gaps["asr"], strict=True)
                ),
            }
        )
    return rows


def line(row: dict[str, Any]) -> str:
    """A run on one line."""
    rates = [
        f"{key} {100 * row['before'][key]['value']:.1f} -> {100 * row['after'][key]['value']:.1f}"
        for key in row["before"]
    ]
    return " ".join(
        [row["arm"], row["model"], f"seed {row['seed']}", *rates, f"{row['seconds']:.0f} s"]
    )


def main(options: Options) -> None:
    """Runs what is missing."""
    torch.set_num_threads(options.threads)
    root = Path(os.environ["BEZOAR_DATA"])
    generator = load_generator(options.generator)
    public = ImageSet.from_parquet(
        root / "tinyimagenet" / "val.parquet", channels=3, size=(32, 32), resize="stretch"
    )
    done = json.loads(options.out.read_text()) if options.out.exists() else {"runs": []}
    done |= result_head(
        __file__,
        "I-BAU on inverted samples, on controls and on real images",
        f"{options.threads} thread(s)",
    ) | {"generator": {key: generator.origin.get(key) for key in ("kind", "steps", "seed")}}
    names = ("arm", "model", "seed", "asked")
    known = {tuple(run[key] for key in names) for run in done["runs"]}
    evaluators: dict[str, Classifier] = {}
    for suspect in suspects(options):
        if suspect.data in EVALUATORS and suspect.data not in evaluators:
            folder = root / "models" / EVALUATORS[suspect.data]
            evaluators[suspect.data] = load(folder)[0].classifier
        for seed in options.seeds:
            for arm in options.arms:
                if (arm, suspect.name, seed, options.images) in known:
                    continue
                evaluator = evaluators.get(suspect.data)
                row = to_json(one(suspect, arm, seed, options, generator, public, evaluator))
                done["runs"].append(row)
                done["summary"] = summary(done["runs"])
                done["beside real images"] = beside_real(done["runs"])
                write_json(options.out, done)
                print(line(row), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
