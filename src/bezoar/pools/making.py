"""One model: images, network, planting, files, scores. Its folder is there whole or not at all."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec
import safetensors.torch
import torch
from torch import Tensor

from bezoar.attacks import Attack, load_attack, save_attack
from bezoar.classifier import Classifier
from bezoar.datasets import facts, open_dataset
from bezoar.device import resolve_device
from bezoar.errors import InputError
from bezoar.evaluation import check_evaluation, evaluate
from bezoar.executors.worker import report
from bezoar.images import ImageSet
from bezoar.intake import load_model
from bezoar.intake.describing import write_description
from bezoar.metrics import accuracy
from bezoar.networks.architectures import build_network
from bezoar.pools.part import part_of
from bezoar.pools.picture import picture_of
from bezoar.pools.spec import Job
from bezoar.records import write_bytes, write_json
from bezoar.training import Progress, fit

MODEL, WEIGHTS, TRIGGER, RECORD = (
    "model.toml",
    "weights.safetensors",
    "trigger.safetensors",
    "record.json",
)

PICTURE = "trigger.png"

POSITIVE_ASR = 0.9
"""A model below this ASR is called weak and is never counted as a backdoored one."""

NATURAL_ASR = 0.5
"""A trigger that the clean twin obeys this often is natural: it needs no backdoor."""

_SUBSET_SEED = 0  # every model of a pool sees the same images


def make_model(
    job: Job | dict[str, Any],
    out: str | Path,
    *,
    twin: str | Path | None = None,
    device: str | None = None,
    checkpoint: str | Path | None = None,
    picture: bool = False,
    progress: Progress = report,
) -> dict[str, Any]:
    """Trains the model of ``job`` and writes its folder; if it is there, reads its record.

    The scores are those of the files as they were written: the model and the trigger are loaded
    again first, half precision included.

    Args:
        job: what to make, or its plain form.
        out: the model's folder; its parent must exist.
        twin: folder of the clean twin: for its ASR, and as the surrogate of attacks that need one.
        device: where to compute; by default the accelerator, else the CPU.
        checkpoint: a file from which an interrupted training goes on; removed once the model is
            there.
        picture: also write a picture of stamped images.
        progress: called while it works; by default the executor's.

    Returns:
        The record.

    Raises:
        InputError: the images, network or attack cannot be had or do not fit together.
    """
    out = Path(out)
    if isinstance(job, dict):
        job = msgspec.convert(job, Job)
    resume = None if checkpoint is None else Path(checkpoint)
    if (there := _made(job, out)) is not None:
        _remove(resume)
        return _checked(there, job, out, twin, device)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there and is no model; give the name of a new folder")
    if not os.access(out.parent, os.W_OK):
        raise InputError(f"{out} cannot be made: {out.parent} is no folder that can be written to")
    started = time.perf_counter()
    attack = job.attack_or_none()
    where = resolve_device(device)
    train, test = open_images(job)
    clean_twin = None if twin is None else load_model(Path(twin) / MODEL, device=where).classifier
    classifier = fresh_classifier(job, train, where)
    _check(job, classifier, train, test)
    planting: dict[str, Any] = {}
    if attack is None:
        history = fit(
            classifier, train, job.recipe, seed=job.seed, checkpoint=resume, progress=progress
        )
    else:
        planted = attack.plant(
            classifier,
            train,
            job.rate,
            job.recipe,
            seed=job.seed,
            surrogate=clean_twin,
            checkpoint=resume,
            progress=progress,
        )
        attack, history = planted.attack, planted.history
        planting = {
            "poisoned": planted.poisoned,
            "covered": planted.covered,
            "notes": list(planted.notes),
        }
    before = measure(classifier, test, attack)
    with part_of(out) as part:
        _write(part, job, classifier, attack, train)
        progress("measuring", 0.0)
        loaded = load_model(part / MODEL, device=where).classifier
        if attack is not None:
            attack = load_attack(part / TRIGGER)
        scores = measure(loaded, test, attack)
        twin_scores = None
        if clean_twin is not None and attack is not None:
            twin_scores = measure(clean_twin, test, attack)
        record = {
            "kind": "model",
            "name": out.name,
            "job": msgspec.to_builtins(job),
            "status": status_of(scores, twin_scores),
            "scores": scores,
            "before rounding": before,
            "clean twin": twin_scores and {"name": Path(twin or "").name, **twin_scores},
            "planting": planting,
            "training": msgspec.to_builtins(history),
            "images": {
                "train": len(train),
                "train sha256": train.sha256(),
                "test": len(test),
                "test sha256": test.sha256(),
                "notices": list(dict.fromkeys((*train.notices, *test.notices))),
            },
            "versions": {"torch": torch.__version__},
            "device": str(classifier.device),
            "seconds": {"training": history.seconds, "total": time.perf_counter() - started},
        }
        if picture and attack is not None:
            write_bytes(part / PICTURE, picture_of(attack, test))
        write_json(part / RECORD, record)
        try:
            part.replace(out)
        except OSError as error:
            if (there := _made(job, out)) is None:
                raise InputError(f"the folder {out} cannot be written: {error.strerror}") from error
            record = there  # another process was faster
    _remove(resume)
    return record


def _remove(checkpoint: Path | None) -> None:
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)


def _made(job: Job, out: Path) -> dict[str, Any] | None:
    """The record of the model in ``out``; None where there is none.

    Raises:
        InputError: it was made otherwise.
    """
    if not (out / RECORD).is_file() or "job" not in (record := read_record(out)):
        return None
    if msgspec.convert(record["job"], Job) != job:
        raise InputError(f"{out} holds a model that was made otherwise; give another folder")
    return record


def _checked(
    record: dict[str, Any], job: Job, out: Path, twin: str | Path | None, device: str | None
) -> dict[str, Any]:
    """The record of a model that is there, if its images are still the same.

    Where it has no scores of a twin yet and one is given, they are measured and kept.

    Raises:
        InputError: it was made of other images, or they cannot be had.
    """
    train, test = open_images(job)
    told = record["images"]
    if (train.sha256(), test.sha256()) != (told["train sha256"], told["test sha256"]):
        raise InputError(f"{out} holds a model of other images; give another folder")
    if twin is None or job.attack is None or record["clean twin"] is not None:
        return record
    classifier = load_model(Path(twin) / MODEL, device=resolve_device(device)).classifier
    scores = measure(classifier, test, load_attack(out / TRIGGER))
    record = record | {
        "status": status_of(record["scores"], scores),
        "clean twin": {"name": Path(twin).name, **scores},
    }
    write_json(out / RECORD, record)
    return record


def check_job(job: Job) -> None:
    """Refuses what cannot work, before anything is trained.

    Raises:
        InputError: the images, network or attack cannot be had or do not fit together.
    """
    train, test = open_images(job)
    _check(job, fresh_classifier(job, train, torch.device("cpu")), train, test)


def _check(job: Job, classifier: Classifier, train: ImageSet, test: ImageSet) -> None:
    if train.shape != test.shape:
        sizes = (" x ".join(map(str, images.shape)) for images in (train, test))
        raise InputError(
            "the training images have {} values and the test images {} (channels, height, width); "
            "give images that are alike".format(*sizes)
        )
    attack = job.attack_or_none()
    if attack is not None:
        attack.check(train, job.rate, classifier.num_classes)
    check_evaluation(classifier, test, attack)


def open_images(job: Job) -> tuple[ImageSet, ImageSet]:
    """The training and the test images of a job."""
    parts = []
    for split, limit in (("train", job.train_images), ("test", job.test_images)):
        images = open_dataset(job.data, split)  # type: ignore[arg-type]  # the two names above
        if limit is not None:
            images = images.sample(limit, seed=_SUBSET_SEED)
        parts.append(images)
    return parts[0], parts[1]


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a finished model.

    Raises:
        InputError: it is missing or broken.
    """
    try:
        record: dict[str, Any] = msgspec.json.decode((folder / RECORD).read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(
            f"{folder} has no readable {RECORD}: {error}; remove the folder"
        ) from error
    return record


def fresh_classifier(job: Job, train: ImageSet, device: torch.device) -> Classifier:
    """The untrained network of a job, made for the images ``train``.

    Raises:
        InputError: there is no such network, or it does not take these arguments or images.
    """
    known = facts(job.data, train)
    classes = max(known.classes, len(train.classes or ()))
    if "num_classes" in job.arguments:
        try:
            classes = int(job.arguments["num_classes"])
        except (TypeError, ValueError):
            raise InputError(
                f"num_classes is {job.arguments['num_classes']!r}; expected a whole number"
            ) from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        # build_network leaves the generator as it was, and starts from it.
        network = build_network(
            job.network, job.arguments, num_classes=classes, channels=train.shape[0]
        )
    classifier = Classifier(
        network.to(device),
        mean=known.mean,
        std=known.std,
        classes=train.classes,
        input_size=train.shape[1:],
    )
    classifier.trace(train.shape)
    return classifier


def measure(classifier: Classifier, test: ImageSet, attack: Attack | None) -> dict[str, Any]:
    """ACC, and with a trigger ASR and RA, as records hold them."""
    if attack is not None:
        return evaluate(classifier, test, attack).as_record()
    answers = classifier.logits(test).argmax(1).cpu()
    return {"acc": accuracy(answers, test.require_labels("measuring").cpu()).as_record()}


def status_of(scores: dict[str, Any], twin: dict[str, Any] | None) -> str:
    """What a model counts as, from its scores and those of its clean twin under the same trigger.

    ``clean``; ``weak`` where the ASR is below 90 %; ``natural`` where the clean twin's is 50 % or
    more, so that the trigger needs no backdoor; else ``backdoored``.
    """
    if "asr" not in scores:
        return "clean"
    if scores["asr"]["value"] < POSITIVE_ASR:
        return "weak"
    return "natural" if twin and twin["asr"]["value"] >= NATURAL_ASR else "backdoored"


def _write(
    folder: Path, job: Job, classifier: Classifier, attack: Attack | None, train: ImageSet
) -> None:
    half = job.precision == "float16"

    def stored(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().cpu().contiguous()
        return tensor.half() if half and tensor.dtype == torch.float32 else tensor

    state = {name: stored(tensor) for name, tensor in classifier.network.state_dict().items()}
    write_bytes(folder / WEIGHTS, safetensors.torch.save(state))
    write_description(
        folder / MODEL,
        architecture=job.network,
        arguments=job.arguments,
        weights=WEIGHTS,
        classifier=classifier,
        shape=train.shape,
    )
    if attack is not None:
        rounded = attack.holding(
            {name: stored(array) for name, array in attack.tensors(train.shape).items()},
            train.shape,
        )
        save_attack(rounded, folder / TRIGGER, train.shape)
