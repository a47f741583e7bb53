"""One run: a model is loaded, repaired with clean images, and measured with the true trigger.

This is the function that executors call, in a process of its own; what it needs comes as files and
plain values, and what it measured goes back as plain values. It may know the trigger, as
``bezoar.evaluation`` may, and hands the method nothing but clean images.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch

from bezoar.attacks import Attack, load_attack
from bezoar.bench import material
from bezoar.bench.memory import peak_memory
from bezoar.bench.runs import CLEAN_TWIN, NO_DEFENSE, Run
from bezoar.classifier import Classifier
from bezoar.device import resolve_device
from bezoar.errors import InputError
from bezoar.evaluation import evaluate
from bezoar.executors.worker import report
from bezoar.generators.generator_files import load_generator
from bezoar.generators.public_generator import PublicGenerator
from bezoar.images import ImageSet
from bezoar.intake import load_model
from bezoar.methods import Method, Repair, is_data_free, methods, takes_public
from bezoar.metrics import Rate, defense_effectiveness_interval
from bezoar.pools.making import MODEL, TRIGGER, measure
from bezoar.records import to_json

ORACLE_IMAGES = 500  # test images that the oracle chooses on; all of them measure its choice
ORACLE_DROP = 0.1  # relative fall of accuracy that BackdoorBench's choice by test ASR allows


def run_one(
    *,
    config: dict[str, Any],
    model: str,
    images: str,
    twin: str | None = None,
    public: str | None = None,
    generator: str | None = None,
    generator_name: str = "",
    before: dict[str, Any] | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Repairs and measures; what a result file holds beside the facts of the run.

    Args:
        config: the ``Run`` as plain values.
        model: the model's folder.
        images: the prepared file of its data set.
        twin: the clean twin's folder, for the row of that name.
        public: prepared public images, for a method that takes them.
        generator: the folder of a generator's files, for the same.
        generator_name: the name of its description in there.
        before: the scores of the model itself; by default they are measured.
        device: where to compute; by default the accelerator, else the CPU.

    Raises:
        InputError: the model cannot be loaded, or the method cannot work with it or its images.
    """
    run = msgspec.convert(config, Run)
    where = resolve_device(device)
    name = run.method["name"]
    folder = Path(twin or "" if name == CLEAN_TWIN else model)
    classifier = load_model(folder / MODEL, device=where).classifier
    attack = load_attack(Path(model) / TRIGGER) if TRIGGER in run.files else None
    rest, test = material.divided(images, run.test_images)
    report("measuring", 0.0)
    if name in (NO_DEFENSE, CLEAN_TWIN):
        scores = measure(classifier, test, attack)
        return {"after": scores, "images": _images(test, None), "device": str(where)}
    if before is None:
        before = measure(classifier, test, attack)
    clean = rest.sample(run.images, seed=run.seed) if run.images else None
    if clean is not None and len(clean) < run.images:
        raise InputError(f"there are {len(clean)} clean images, and the run needs {run.images}")
    classifier.trace(test.shape)
    settings = {key: value for key, value in run.method.items() if key != "name"}
    method = msgspec.convert(settings, methods.get(name))
    source = None if generator is None else Path(generator) / generator_name
    given = _public(public, source, where) if takes_public(method) else clean
    started, used = time.perf_counter(), time.process_time()
    with peak_memory(where) as peak:
        repair = _remove(method, classifier, given, run.seed)
        if where.type == "cuda":
            torch.cuda.synchronize(where)
    seconds, processor_seconds = time.perf_counter() - started, time.process_time() - used
    report("measuring", 1.0)
    after = measure(repair.classifier, test, attack)
    measured: dict[str, Any] = {
        "before": before,
        "after": after,
        **_effect(before, after),
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "peak_memory": {"bytes": peak.bytes, "of": peak.of},
        "device": str(where),
        "images": _images(test, clean),
        "decided": decided(repair),
    }
    if run.oracle and attack is not None and repair.alternatives is not None:
        measured["oracle"] = oracle(repair, classifier, test, attack, before)
    return to_json(measured)  # type: ignore[no-any-return]  # a dict gives a dict


def oracle(
    repair: Repair,
    original: Classifier,
    test: ImageSet,
    attack: Attack,
    before: dict[str, Any],
) -> dict[str, Any]:
    """What the sweep would have given to somebody who knows the trigger and the test images.

    The rule is BackdoorBench's: the lowest ASR among the settings that cost less than a tenth of
    the accuracy; the method's own choice is among them. It is made on a part of the test images,
    on which the original is measured, too, and measured on all of them. It is no result of the
    method, and not always better: a setting that costs more is refused, and beyond that accuracy
    plays no part.
    """
    few = test.sample(ORACLE_IMAGES, seed=0)
    floor = (1 - ORACLE_DROP) * evaluate(original, few, attack).acc

    def candidates() -> Iterator[tuple[str, Classifier]]:
        yield "its own choice", repair.classifier
        if repair.alternatives is not None:
            yield from repair.alternatives()

    best: tuple[float, str, Classifier] | None = None
    for setting, candidate in candidates():
        scores = evaluate(candidate, few, attack)
        if scores.acc > floor and (best is None or scores.asr < best[0]):
            best = scores.asr, setting, candidate
    if best is None:
        return {"setting": None, "reason": "every setting costs a tenth of the accuracy or more"}
    after = measure(best[2], test, attack)
    return {"setting": best[1], "after": after, **_effect(before, after)}


def decided(repair: Repair) -> dict[str, Any]:
    """What the method itself tells of its repair, without the long lists."""
    record = {k: v for k, v in repair.record.items() if k not in ("curves", "history")}
    short: dict[str, Any] = to_json(_short(record))
    return short


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and len(value) > _LONGEST:
        return f"{len(value)} values"
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    return value


_LONGEST = 32  # of a list that a result file keeps; curves and masks belong into reports


def _effect(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Loss of accuracy, and with a trigger the DER."""
    old, new = (
        {name: msgspec.convert(value, Rate) for name, value in scores.items()}
        for scores in (before, after)
    )
    effect: dict[str, Any] = {"acc_drop": old["acc"].value - new["acc"].value}
    if "asr" in old:
        effect["der"] = defense_effectiveness_interval(
            old["acc"], new["acc"], old["asr"], new["asr"]
        ).as_record()
    return effect


def _images(test: ImageSet, clean: ImageSet | None) -> dict[str, Any]:
    return {
        "test": len(test),
        "clean": 0 if clean is None else len(clean),
        "clean_sha256": None if clean is None else clean.sha256(),
    }


def _public(
    public: str | None, generator: Path | None, device: torch.device
) -> ImageSet | PublicGenerator | None:
    images = None if public is None else material.read(public)
    if generator is None:
        return images
    return dataclasses.replace(load_generator(generator, device=device), images=images)


def _remove(method: Method, classifier: Classifier, given: Any, seed: int) -> Repair:
    if is_data_free(method):
        return method.remove(classifier, None, seed=seed, progress=report)
    return method.remove(classifier, given, seed=seed, progress=report)
