"""Erasing without data on digit networks: what it removes, what it costs, where it breaks.

    python benchmarks/dhbe_erasing.py                      everything
    python benchmarks/dhbe_erasing.py --parts digits       default settings and the control

``digits``: networks with a patch (BadNets), with faint noise (Blend), with a pattern in the four
corners under clean labels (label-consistent), and without a backdoor. The control is the same game
with λ = 0, so that nothing asks for insensitivity to patterns. ``tolerance``: one setting at a time
on the network with the patch, or the side of its trigger.

DHBE sees weights and normalisation only; real images score it afterwards. Planting follows the
demo. SIG is not here: on 8x8 pixels, waves of amplitude 40 and 60 in four of five images of the
target class reached an ASR below 15 %. Writes ``results/dhbe_erasing.json`` after each run, a rerun
does what is missing, and ``docs/images/dhbe_erasing.svg``.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
import tyro
from result_file import result_head
from tolerance_picture import Panel, picture

from bezoar import networks
from bezoar.attacks import Attack, BadNets, Blend, LabelConsistent
from bezoar.classifier import Classifier
from bezoar.demo import DIGITS_RECIPE, MEAN, POISON_RATE, STD, load_digits
from bezoar.evaluation import Scores, evaluate
from bezoar.images import ImageSet
from bezoar.methods import DHBE
from bezoar.records import write_json, write_text
from bezoar.training import fit

RESULTS = Path(__file__).parent / "results" / "dhbe_erasing.json"
DOCS = Path(__file__).parents[1] / "docs"
PICTURE = "images/dhbe_erasing.svg"
CLEAN_LABEL_RATE = 0.08  # of all images, so about four of five of the target class
PATCH = "bad-nets 2x2"
MODELS = (PATCH, "blend 0.25", "label-consistent", "clean twin")
DEFAULT, CONTROL = "default", "control, λ = 0"
TOLERANCE: dict[str, tuple[Any, ...]] = {
    "insensitivity": (0.0, 0.1, 0.3, 1.2, 3.0, 10.0),
    "learning_rate": (0.001, 0.003, 0.01, 0.03, 0.1),
    "iterations": (5, 10, 20, 40, 80),
    "student_steps": (1, 2, 5, 10),
    "patch_sizes": ((2,), (3,), (2, 3), (4,)),
    "synthesis.statistics": (0.0, 2.0, 20.0, 200.0),
    "trigger size": (1, 2, 3),
}
DEFAULTS = {
    "insensitivity": "1.2",
    "learning_rate": "0.01",
    "iterations": "40",
    "student_steps": "5",
    "patch_sizes": "2, 3",  # what the default chooses for 8x8 pixels
    "synthesis.statistics": "20",
    "trigger size": "2",
}
Row = dict[str, Any]


@dataclass
class Options:
    """What to run.

    Attributes:
        parts: which ones.
        seeds: of the digit networks.
        tolerance_seeds: of the networks whose settings change.
        threads: of torch.
    """

    parts: tuple[Literal["digits", "tolerance"], ...] = ("digits", "tolerance")
    seeds: tuple[int, ...] = (0, 1, 2)
    tolerance_seeds: tuple[int, ...] = (0, 1)
    threads: int = 1


def trained(model: str, seed: int) -> tuple[Classifier, Attack]:
    """A digit network and the attack that scores it; the twin is scored with the patch."""
    train, _, _ = load_digits(seed=seed)
    target = seed % 10
    attack: Attack
    if model == "clean twin":
        return _fitted(train, seed), BadNets(target=target, size=2)
    if model == "blend 0.25":
        attack = Blend(target=target, ratio=0.25, pattern_seed=seed)
    elif model == "label-consistent":
        surrogate, _ = network_of("clean twin", seed)
        attack = LabelConsistent(target=target, epsilon=32 / 255)
        attack = attack.prepare(train, seed=seed, surrogate=surrogate)
    else:
        attack = BadNets(target=target, size=int(model[-1]))
    rate = CLEAN_LABEL_RATE if attack.clean_label else POISON_RATE
    return _fitted(attack.poison(train, rate, seed=seed).images, seed), attack


network_of = cache(trained)


def _fitted(images: ImageSet, seed: int) -> Classifier:
    torch.manual_seed(seed)
    network = networks.build("small-cnn")
    classifier = Classifier(network, mean=MEAN, std=STD, input_size=(8, 8))
    fit(classifier, images, DIGITS_RECIPE, seed=seed)
    return classifier


def erased(model: str, seed: int, method: DHBE) -> Row:
    """Scores of one network before and after."""
    classifier, attack = network_of(model, seed)
    _, _, test = load_digits(seed=seed)
    used = time.process_time()
    repair = method.remove(classifier, seed=seed)
    used = time.process_time() - used
    rounds = repair.record["rounds"]
    return {
        "before": _shares(evaluate(classifier, test, attack)),
        "after": _shares(evaluate(repair.classifier, test, attack)),
        "led before": rounds[0]["led"],
        "led after": rounds[-1]["led"],
        "synthetic agreement": repair.record["agreement"]["synthetic"],
        "rounds": len(rounds) - 1,
        "refused": repair.record["refused"] is not None,
        "processor seconds": used,
    }


def _shares(scores: Scores) -> Row:
    return {key: scores.as_record()[key] for key in ("acc", "asr")}


def changed(factor: str, setting: Any) -> DHBE:
    """The default settings but for one; the size of the trigger is none of them."""
    if factor == "trigger size":
        return DHBE()
    if factor == "synthesis.statistics":
        synthesis = msgspec.structs.replace(DHBE().synthesis, statistics=setting)
        return DHBE(synthesis=synthesis)
    return msgspec.structs.replace(DHBE(), **{factor: setting})


def text_of(setting: Any) -> str:
    """A setting as it is written on the axis."""
    return ", ".join(map(str, setting)) if isinstance(setting, tuple) else f"{setting:g}"


def kind_of(factor: str, setting: Any) -> str | None:
    """The kind of run among the digits that a point of the tolerance repeats."""
    if text_of(setting) == DEFAULTS[factor]:
        return DEFAULT
    return CONTROL if (factor, setting) == ("insensitivity", 0.0) else None


def panels(rows: list[Row]) -> list[Panel]:
    """What the picture shows: scores after the repair, one panel for each factor."""
    found = []
    for factor, settings in TOLERANCE.items():
        points: dict[str, tuple[list[float], list[float]]] = {
            text_of(setting): ([], []) for setting in settings
        }
        for row in rows:
            if row["factor"] == factor:
                for scores, key in zip(points[row["setting"]], ("acc", "asr"), strict=True):
                    scores.append(row["after"][key]["value"])
        found.append(Panel(factor, DEFAULTS[factor], points))
    return found


def main(options: Options) -> None:
    """Runs what is missing."""
    torch.set_num_threads(options.threads)
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    digits: list[Row] = old.get("digits", [])
    tolerance: list[Row] = old.get("tolerance", [])

    def save(row: Row) -> None:
        record = result_head(
            __file__,
            "Erasing without data on digit networks (DHBE)",
            f"{options.threads} thread(s)",
        ) | {
            "picture": {
                "file": PICTURE,
                "shows": "Accuracy (ACC) and attack success rate (ASR) after the repair of the "
                "network with the patch, one setting changed at a time",
            },
            "digits": digits,
            "tolerance": tolerance,
        }
        write_json(RESULTS, record)
        print(row, flush=True)

    known = {(row["model"], row["kind"], row["seed"]): row for row in digits}
    for seed in options.seeds if "digits" in options.parts else ():
        for model in MODELS:
            for kind, method in ((DEFAULT, DHBE()), (CONTROL, DHBE(insensitivity=0.0))):
                if (model, kind, seed) in known:
                    continue
                row = {"model": model, "kind": kind, "seed": seed} | erased(model, seed, method)
                known[model, kind, seed] = row
                digits.append(row)
                save(row)
    done = {(row["factor"], row["setting"], row["seed"]) for row in tolerance}
    for seed in options.tolerance_seeds if "tolerance" in options.parts else ():
        for factor, settings in TOLERANCE.items():
            for setting in settings:
                name = text_of(setting)
                if (factor, name, seed) in done:
                    continue
                same = known.get((PATCH, kind_of(factor, setting), seed))
                model = f"bad-nets {setting}" if factor == "trigger size" else PATCH
                scores = same or erased(model, seed, changed(factor, setting))
                scores = {key: scores[key] for key in scores if key not in ("model", "kind")}
                row = {"factor": factor, "setting": name, "seed": seed} | scores
                tolerance.append(row)
                save(row)
    if tolerance:
        (DOCS / PICTURE).parent.mkdir(exist_ok=True)
        write_text(DOCS / PICTURE, picture(panels(tolerance)))


if __name__ == "__main__":
    main(tyro.cli(Options))
