"""The demo: poison, scan, clean, check, on real handwritten digits, before the user's eyes.

Two networks are trained on the same digits: one with a patch in a tenth of its training images,
one without. Both are scanned with the same clean images; the backdoored one is repaired, and only
then the true trigger is used, to check the repair. It runs through the same functions and files as
``bezoar scan`` and ``bezoar clean``.
"""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from bezoar import networks, pipeline, report, scanning
from bezoar.attacks import BadNets
from bezoar.classifier import Classifier
from bezoar.datasets import read_digits
from bezoar.evaluation import Scores, compare, evaluate
from bezoar.images import ImageSet
from bezoar.intake import read_weights, write_weights
from bezoar.intake.describing import write_description
from bezoar.records import make_folder, to_json, write_bytes, write_json
from bezoar.report.examples import examples
from bezoar.training import Progress, Recipe, fit, no_progress

DIGITS_RECIPE = Recipe(
    epochs=15, batch_size=64, learning_rate=0.1, schedule="one-cycle", clip_norm=5.0
)
MEAN, STD = 0.3, 0.35
POISON_RATE = 0.1
REMOVED = 0.1  # an ASR that counts as removed
TRAIN, CLEAN = 1000, 300


def load_digits(*, seed: int = 0) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Training images (1,000), the defender's clean images (300) and test images (497).

    The 1,797 digits of the UCI data set (8x8, grey; see ``data/README.md``) in an order that
    ``seed`` draws.
    """
    digits = read_digits()
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    parts = order[:TRAIN], order[TRAIN : TRAIN + CLEAN], order[TRAIN + CLEAN :]
    train, clean, test = (digits.subset(part) for part in parts)
    return train, clean, test


def run(
    out: Path,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    progress: Progress = no_progress,
    command: str | None = None,
) -> tuple[dict[str, Any], Path]:
    """Runs the demo and writes models, records and the report into the folder ``out``.

    Returns:
        The record, and the path of the report.

    Raises:
        InputError: the folder cannot be made or written.
    """
    started = time.perf_counter()
    make_folder(out)
    train, clean, test = load_digits(seed=seed)
    attack = BadNets(target=seed % 10, size=2)
    poisoned = attack.poison(train, POISON_RATE, seed=seed).images

    backdoored = _train(poisoned, seed, device, progress, "training the backdoored network")
    twin = _train(train, seed, device, progress, "training its clean twin")
    files = {"backdoored": out / "backdoored.safetensors", "twin": out / "clean-twin.safetensors"}
    for name, classifier in (("backdoored", backdoored), ("twin", twin)):
        write_bytes(files[name], safetensors.torch.save(classifier.network.state_dict()))
        write_description(
            files[name].with_suffix(".toml"),
            architecture="bezoar:small-cnn",
            arguments={},
            weights=files[name].name,
            classifier=classifier,
            shape=train.shape,
        )
    _write_images(out / "clean.npz", clean)
    _write_images(out / "test.npz", test)

    look: dict[str, Any] = {"seed": seed, "progress": progress}
    twin_finding = pipeline.scan(twin, clean, **look)
    finding = pipeline.scan(backdoored, clean, **look)
    # Whatever the verdict, it is repaired: the user asked for a demo.
    repair = pipeline.clean(backdoored, clean, precaution=True, **look)
    cleaned = out / "cleaned.safetensors"
    write_weights(
        read_weights(files["backdoored"]), repair.classifier.network.state_dict(), cleaned
    )

    before, after = evaluate(backdoored, test, attack), evaluate(repair.classifier, test, attack)
    twin_scores = evaluate(twin, test, attack)
    repair_record = repair.record | {
        "written": True,
        "forced": not repair.record["accepted"],
        "output": {"file": cleaned.name, "sha256": read_weights(cleaned).sha256},
        "attack": compare(attack, before, after),
    }
    record = scanning.describe(backdoored, clean, seed) | {
        "kind": "demo",
        "title": _title(finding, after),
        "command": command,
        "sentence": (
            f"A network for handwritten digits was trained with a 2x2 patch in "
            f"{100 * POISON_RATE:.0f} % of its training images, so that it answers "
            f"{attack.target} to every image with the patch. bezoar was given its weights and "
            f"{len(clean)} clean images."
        ),
        "backdoored": {"scan": finding.record},
        "repair": repair_record,
        "clean_twin": {
            "scan": twin_finding.record,
            "attack": {
                "name": attack.name,
                "description": "the same patch on the twin, which never saw it in training",
                "before": twin_scores.as_record(),
            },
        },
        "story": _story(finding, twin_finding, repair_record, before, after, test),
        "notices": [],
        "skipped": [],
        "seconds": {"total": time.perf_counter() - started},
    }
    for part in (finding.record, repair_record):
        part["model"] |= {"file": files["backdoored"].name}
    twin_finding.record["model"] |= {"file": files["twin"].name}
    page = out / "report.html"
    write_json(out / "record.json", record)
    report.write(
        page, report.render(to_json(record), examples(backdoored, clean, finding.suspects))
    )
    return record, page


def _train(
    images: ImageSet, seed: int, device: torch.device | None, progress: Progress, what: str
) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = networks.build("small-cnn", num_classes=10, channels=1)
    classifier = Classifier(
        network.to(device or "cpu"),
        mean=MEAN,
        std=STD,
        classes=images.classes,
        input_size=images.shape[1:],
    )
    fit(classifier, images, DIGITS_RECIPE, seed=seed, progress=progress, what=what)
    return classifier


def _title(finding: pipeline.Finding, after: Scores) -> str:
    found = "found" if finding.suspects else "looked for"
    removed = "removed" if after.asr <= REMOVED else "repaired"
    return f"A backdoor in a digit classifier: planted, {found}, {removed}, checked"


def _write_images(path: Path, images: ImageSet) -> None:
    labels = images.require_labels("the demo")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images.images.cpu().numpy(), labels=labels.cpu().numpy())
    write_bytes(path, buffer.getvalue())


def _story(
    finding: pipeline.Finding,
    twin: pipeline.Finding,
    repair: dict[str, Any],
    before: Scores,
    after: Scores,
    test: ImageSet,
) -> list[str]:
    suspects = ", ".join(map(str, finding.suspects)) or "none"
    return [
        f"Backdoored network: {finding.verdict.value} (suspected class: {suspects}).",
        f"Its clean twin: {twin.verdict.value}.",
        repair["outcome"],
        f"The true trigger, on {len(test)} test images: it hijacked {100 * before.asr:.1f} % "
        f"before and {100 * after.asr:.1f} % after the repair; accuracy {100 * before.acc:.1f} % "
        "before "
        f"and {100 * after.acc:.1f} % after.",
    ]
