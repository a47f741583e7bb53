"""How far does the true trigger really push the features of the third-party networks?

    BEZOAR_DATA=... python benchmarks/true_shift.py

An explanation after the fact, made with the true triggers: TAC presumes that the trigger's shift is
hardly longer than the shortest one that carries all images. Where it is many times longer, the
shortest shifts say nothing about the target class. No method uses any of this.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from result_file import result_head
from third_party import CLEAN_IMAGES, checkpoints, load, test_images

from bezoar.attacks import StoredPattern
from bezoar.images import ImageSet
from bezoar.methods import TAC
from bezoar.records import write_json

RESULTS = Path(__file__).parent / "results" / "true_shift.json"
STAMPED = 1000


def measure(folder: Path, root: Path) -> dict[str, Any] | None:
    """Lengths of the shortest and of the true shift of one network; None without a backdoor."""
    loaded, facts = load(folder)
    if not facts["backdoored"]:
        return None
    classifier, target = loaded.classifier, facts["attack"]["target"]
    everything = test_images(root, facts)
    part, rest = everything.split(CLEAN_IMAGES / len(everything), seed=0)
    attack = StoredPattern(file=str(folder / "trigger.npy"), target=target)
    chosen = rest.subset(torch.nonzero(attack.applies_to(rest.labels)).flatten()[:STAMPED])
    pixels = (attack.stamp(chosen.images / 255) * 255).round().to(torch.uint8)
    stamped = ImageSet(pixels, chosen.labels)
    logits, clean_features = classifier.survey(part)
    weight = classifier.head.weight
    solution = TAC().solve(logits, weight, None)
    shortest = solution.shifts[target].float()
    true = (classifier.survey(stamped)[1] - classifier.survey(chosen)[1]).mean(0)
    span = torch.linalg.svd(weight - weight.mean(0), full_matrices=False)[2][: len(weight) - 1]
    inside = span.T @ (span @ true)
    classes = range(len(weight))
    means = torch.stack([clean_features[part.labels == k].mean(0) for k in classes])
    distances = torch.cdist(means, means)[target]
    return {
        "model": folder.name,
        "shortest shift": float(shortest.norm()),
        "median shortest shift of all classes": float(solution.norms.median()),
        "true shift": float(true.norm()),
        "true shift, seen by the head": float(inside.norm()),
        "cosine with the shortest": float(F.cosine_similarity(shortest, inside, 0)),
        "mean distance to other classes": float(distances.sum() / (len(weight) - 1)),
    }


def main() -> None:
    """Measures all of them."""
    root = Path(os.environ["BEZOAR_DATA"])
    rows = [row for folder in checkpoints(root) if (row := measure(folder, root)) is not None]
    title = "The true trigger's shift of the features beside the shortest one"
    write_json(RESULTS, result_head(__file__, title) | {"runs": rows})
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
