"""The models that benchmarks measure: of the pool, and third-party checkpoints, by name.

Clean images and test images come from two parts of a test file, so no model and no method saw one
of the latter.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import third_party
from pool_methods import POOL, parts

from bezoar.attacks import Attack, StoredPattern
from bezoar.classifier import Classifier
from bezoar.images import ImageSet
from bezoar.pools import open_pool


@dataclass
class Measured:
    """A model, clean images, test images, its trigger or None, and what is known of it.

    ``twin`` is the same network trained without poison, where there is one.
    """

    classifier: Classifier
    clean: ImageSet
    test: ImageSet
    attack: Attack | None
    facts: dict[str, Any]
    twin: Classifier | None = None


def pool_model(name: str, count: int, seed: int) -> Measured:
    """The pool's model ``name`` with ``count`` clean images, drawn with ``seed``."""
    pool = open_pool(POOL)
    named = {entry.name: entry for entry in pool.entries}
    entry = named[name]
    rest, test = parts(entry.data)
    return Measured(
        pool.load(entry).classifier,
        rest.sample(count, seed=seed),
        test,
        pool.attack(entry) if entry.attack else None,
        {
            "half": entry.half,
            "status": entry.status,
            "target": entry.target,
            "attack": entry.attack,
        },
        pool.load(named[entry.twin]).classifier if entry.twin else None,
    )


def third_party_model(name: str, count: int, seed: int) -> Measured:
    """The third-party checkpoint ``name``, the same way."""
    root = Path(os.environ["BEZOAR_DATA"])
    folder = root / "models" / name
    loaded, known = third_party.load(folder)
    everything = third_party.test_images(root, known)
    clean, test = everything.split(count / len(everything), seed=seed)
    attack = None
    if known["backdoored"]:
        target = known["attack"]["target"]
        attack = StoredPattern(file=str(folder / "trigger.npy"), target=target)
    return Measured(
        loaded.classifier,
        clean,
        test,
        attack,
        {
            "half": "third-party",
            "status": "backdoored" if attack else "clean",
            "target": attack and attack.target,
            "attack": known["attack"]["kind"] if attack else None,
        },
    )


MODELS = {"pool": pool_model, "third-party": third_party_model}


def third_party_names() -> list[str]:
    """The names of the third-party checkpoints."""
    return [folder.name for folder in third_party.checkpoints(Path(os.environ["BEZOAR_DATA"]))]
