"""Records as the commands write them, for the tests of the report."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import pytest

from bezoar.report import Picture

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class MakeRecord(Protocol):
    def __call__(
        self, kind: str = ..., classes: int = ..., verdict: str = ...
    ) -> dict[str, Any]: ...


def _names(classes: int) -> list[str]:
    return [CIFAR[place] if classes <= 10 else f"class-{place:04}" for place in range(classes)]


def _common(kind: str, classes: int) -> dict[str, Any]:
    return {
        "kind": kind,
        "bezoar": "0.1.0",
        "created": "2026-11-21T10:00:00+01:00",
        "seed": 1234,
        "device": "cpu",
        "versions": {"python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6"},
        "command": f"bezoar {kind} model.toml --images clean/ --seed 1234",
        "model": {
            "file": "model.safetensors",
            "sha256": "ab" * 32,
            "architecture": "network.py:build",
            "parameters": 175066,
            "input": [3, 32, 32],
            "mean": [0.4914, 0.4822, 0.4465],
            "std": [0.247, 0.243, 0.262],
            "classes": _names(classes),
            "container": "safetensors",
            "head": "fc",
        },
        "images": {
            "source": "clean/",
            "count": 500,
            "sha256": "cd" * 32,
            "labelled": True,
            "per_class": [500 // classes] * classes,
            "notices": ["2 files are no images and were left out: notes.txt, thumbs.db"],
        },
        "skipped": ["Trigger recovery was not run: TAC looks only at the latent layer."],
        "notices": ["The network has no normalisation layer."],
        "seconds": {"features": 0.41, "solve": 0.012, "total": 0.63},
        "history": [],
    }


def _scan(classes: int, verdict: str) -> dict[str, Any]:
    generator = np.random.default_rng(classes)
    values = generator.normal(3.9, 0.45, classes)
    target = min(5, classes - 1)
    if verdict != "nothing found":
        values[target] = {"backdoor found": 0.84, "suspicious": 1.52}[verdict]
    scores = (values - values.mean()) / max(values.std(), 1e-9)
    p_values = np.full(classes, 1.0)
    p_values[target] = {"backdoor found": 2.3e-5, "suspicious": 0.0213, "nothing found": 0.6}[
        verdict
    ]
    suspects = [] if verdict == "nothing found" else [target]
    name = _names(classes)[target]
    sentence = {
        "backdoor found": f"One small change of the features carries 98.4 % of held-out images "
        f"into class {name}; backdoor-free models show nothing like it.",
        "suspicious": f"Class {name} is easier to reach than in backdoor-free models, "
        "but no working trigger was recovered.",
        "nothing found": "No class is easier to reach than the others.",
    }[verdict]
    return {
        "verdict": verdict,
        "sentence": sentence,
        "reasons": [
            f"The shift into {name} is 0.84 long; the median class needs 3.90.",
            "It carries 98.4 % of 250 held-out images.",
        ],
        "suspects": suspects,
        "ranking": np.argsort(values).tolist(),
        "p_values": p_values.tolist(),
        "levels": {"suspicious": 0.05, "found": 0.01},
        "power": "On 40 backdoored test networks this test named 34 at the 5 % level. "
        "It sees one target class, not a model in which every class is a target.",
        "statistic": {
            "name": "Length of the smallest latent shift that carries every image into the class",
            "values": values.tolist(),
            "scores": scores.tolist(),
            "null": {
                "median": 3.9,
                "critical_suspicious": 1.7,
                "critical_found": 1.2,
                "description": "Student t with C-2 degrees of freedom, Bonferroni over C classes "
                "(Grubbs)",
            },
        },
        "evidence": [
            {
                "method": "tac",
                "paper": "Iwahana et al. 2025, arXiv 2511.08944",
                "per_class": {
                    "norm": values.tolist(),
                    "held_out_flip": [
                        0.984 if place in suspects else 0.127 for place in range(classes)
                    ],
                    "weight_norm": [1.437] * classes,
                },
                "kkt_residual": 1.3e-15,
                "seconds": 0.023,
                "details": {"split": "fc", "quantile": 0.99},
            }
        ],
    }


def _share(value: float, half: float = 0.04, count: int = 250) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": min(value + half, 1.0), "count": count}


def _attack(repaired: bool) -> dict[str, Any]:
    attack: dict[str, Any] = {
        "name": "bad-nets",
        "description": "3\u00d73 checker, target 5",
        "before": {"acc": 0.848, "asr": _share(0.993, 0.005), "ra": 0.006},
    }
    if repaired:
        attack["after"] = {"acc": 0.836, "asr": _share(0.021, 0.01), "ra": 0.812}
        attack["der"] = 0.977
    return attack


def _clean(classes: int, verdict: str) -> dict[str, Any]:
    epochs = list(range(1, 21))
    return {
        "scan": _scan(classes, verdict),
        "method": {
            "name": "tac",
            "title": "Latent trigger-activated change",
            "paper": "Iwahana et al. 2025, arXiv 2511.08944",
            "reason": "The scan named one class, and this method repairs one class at a time.",
            "configuration": {"beta": 1.25, "epochs": 20, "layers": ["fc", "layer4"]},
        },
        "before": {"accuracy": _share(0.848)},
        "after": {"accuracy": _share(0.836)},
        "agreement": _share(0.952, 0.02),
        "accuracy_drop": 0.012,
        "loss": {"counted": 0.012, "expected": 0.012, "value": 0.012, "error": 0.009},
        "max_accuracy_drop": 0.04,
        "written": True,
        "forced": False,
        "output": {"file": "cleaned.safetensors", "sha256": "ef" * 32},
        "changes": [
            {
                "tensor": f"layer{place}.conv.weight" if place else "fc.weight",
                "shape": [64, 64, 3, 3] if place else [10, 64],
                "relative_change": 0.31 / (1 + place),
            }
            for place in range(60)
        ],
        "curves": [
            {"name": "clean loss", "x_name": "epoch", "x": epochs, "y": [2 / x for x in epochs]},
            {
                "name": "shifted loss",
                "x_name": "epoch",
                "x": epochs,
                "y": [7.5 / x**1.5 for x in epochs],
            },
            {
                "name": "clean accuracy",
                "x_name": "epoch",
                "x": epochs,
                "y": [0.87 - 0.06 / x for x in epochs],
            },
        ],
        "rescan": _scan(classes, "nothing found"),
        "heading": "Repaired",
        "outcome": "Repaired: accuracy 84.8 → 83.6 % on 250 held-out images; written to "
        "cleaned.safetensors.",
    }


@pytest.fixture(scope="session")
def make_record() -> MakeRecord:
    def make(
        kind: str = "scan", classes: int = 10, verdict: str = "backdoor found"
    ) -> dict[str, Any]:
        if kind == "scan":
            return _common(kind, classes) | _scan(classes, verdict)
        if kind == "clean":
            return _common(kind, classes) | _clean(classes, verdict)
        return _common(kind, classes) | {
            "title": "A backdoor in a network that reads digits",
            "sentence": "A small network was trained on poisoned digits, scanned, repaired, and "
            "checked with the trigger that was planted.",
            "backdoored": {"scan": _scan(classes, verdict)},
            "repair": _clean(classes, verdict) | {"attack": _attack(repaired=True)},
            "clean_twin": {
                "scan": _scan(classes, "nothing found"),
                "attack": _attack(repaired=False)
                | {"before": {"acc": 0.851, "asr": 0.011, "ra": 0.84}},
            },
        }

    return make


@pytest.fixture(scope="session")
def with_patches() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """(record of a scan) → the same with a second witness that compared patches."""

    def add(record: dict[str, Any]) -> dict[str, Any]:
        record = copy.deepcopy(record)
        (tac,) = record["evidence"]
        first = record["statistic"] | {
            "method": "tac",
            "value": "shift",
            "unit": "",
            "absent": "no shift",
            "absence": "no such change of the network exists",
            "carrier": "shift",
            "p_values": record["p_values"],
        }
        sizes = [20.5 + place for place in range(len(first["values"]))]
        sizes[-1] = float("inf")
        second = {
            "name": "L1 norm of the smallest mask",
            "method": "neural-cleanse",
            "value": "patch",
            "unit": "pixels",
            "absent": "no patch",
            "absence": "no patch was found",
            "carrier": "patch",
            "values": sizes,
            "scores": [0.0] * len(sizes),
            "p_values": [1.0] * len(sizes),
            "null": {"description": "Distances in MADs", "median": 24.0},
        }
        carried = [0.5] * len(sizes)
        patches = {
            "method": "neural-cleanse",
            "paper": "Wang et al. 2019",
            "statistic": second,
            "per_class": {"norm": sizes, "held_out_flip": carried, "anomaly_index": carried},
            "seconds": 8.3,
            "details": {"epochs": 30},
        }
        return record | {"statistic": first, "evidence": [tac | {"statistic": first}, patches]}

    return add


@pytest.fixture(scope="session")
def picture() -> Picture:
    """Eight small images of coloured shapes."""
    row, column = np.mgrid[0:32, 0:32]
    images = np.empty((8, 32, 32, 3), np.uint8)
    for place in range(8):
        inside = (row - 16) ** 2 + (column - 16) ** 2 < (5 + place) ** 2
        images[place, :, :, 0] = np.where(inside, 220 - 20 * place, 40 + column * 3)
        images[place, :, :, 1] = np.where(inside, 40 + 25 * place, 60 + row * 2)
        images[place, :, :, 2] = np.where(inside, 90, 120)
    return Picture(
        "Images of class dog",
        "Clean images that the model calls dog. The trigger is not known.",
        images,
        tuple(f"dog {0.91 + 0.01 * place:.2f}" for place in range(8)),
    )
