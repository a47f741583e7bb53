"""Makes the models of a pool that are not there yet, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from bezoar.errors import InputError
from bezoar.executors import Done, Executor, Task
from bezoar.images import ImageSet
from bezoar.pools.index import Pool, write_index
from bezoar.pools.making import (
    RECORD,
    fresh_classifier,
    make_model,
    open_images,
    read_record,
)
from bezoar.pools.spec import Planned, PoolSpec, plan
from bezoar.records import make_folder

Finished = Callable[[str, int, int], None]
"""Called with the name of a finished model, the number of finished ones, and of all."""


def make_pool(
    spec: PoolSpec,
    out: str | Path,
    executor: Executor,
    *,
    device: str | None = None,
    finished: Finished | None = None,
    progress: Callable[[str, str, float], None] | None = None,
) -> Pool:
    """Makes every model of ``spec`` that ``out`` does not hold, and keeps the index up to date.

    Clean models come first: they are twins and surrogates of the others. A model that is killed
    leaves nothing behind but a hidden folder, and is made anew by the next call; one that fails is
    named in the index with its reason, and is tried again by the next call.

    Args:
        spec: what to make.
        out: the pool's folder; made if it is not there. On a cluster, one that all nodes see.
        executor: where the models are made.
        device: where each computes; by default the accelerator, else the CPU.
        finished: called after each model.
        progress: called with a model's name, what it does, and the share that is finished.

    Raises:
        InputError: the plan cannot work: checked on the images before the first training.
    """
    planned = plan(spec)
    out = Path(out).resolve()
    _check(planned, out)
    make_folder(out)
    failed: dict[str, str] = {}
    pool = write_index(out, planned, failed)
    done, total = len(pool.entries), len(planned)
    for clean in (True, False):
        tasks = []
        for one in planned:
            job, name = one.job, one.job.name
            if (job.attack is None) != clean or (out / name / RECORD).is_file():
                continue
            if not clean and job.twin.name in failed:
                failed[name] = f"its clean twin {job.twin.name} failed"
                continue
            arguments = {
                "job": msgspec.to_builtins(job),
                "out": str(out / name),
                "twin": None if clean else str(out / job.twin.name),
                "device": device,
            }
            tasks.append(Task(key=name, function=make_model, arguments=arguments))
        for name, outcome in executor.run(tasks, progress=progress):
            if isinstance(outcome, Done):
                done += 1
            else:
                failed[name] = outcome.message
            pool = write_index(out, planned, failed)
            if finished is not None:
                finished(name, done, total)
    return write_index(out, planned, failed)


def _check(planned: tuple[Planned, ...], out: Path) -> None:
    """What cannot work is said before the first training, on the images and networks themselves."""
    opened: dict[tuple[str, int | None, int | None], tuple[ImageSet, ImageSet]] = {}
    digests: dict[tuple[str, int | None, int | None], dict[str, str]] = {}
    built: list[tuple[str, dict[str, Any]]] = []
    for one in planned:
        job, attack = one.job, one.job.attack_or_none()
        key = (job.data, job.train_images, job.test_images)
        try:
            if key not in opened:
                opened[key] = open_images(job)
            train, test = opened[key]
            train.require_labels("training")
            if (job.network, job.arguments) not in built:
                fresh_classifier(job, train, torch.device("cpu"))
                built.append((job.network, job.arguments))
            if attack is not None:
                attack.check(train, job.rate)
                for part in () if attack.learned else attack.parts:
                    part.stamp(train.images[:1].float() / 255)
            if (out / job.name / RECORD).is_file():
                if key not in digests:
                    digests[key] = {"train": train.sha256(), "test": test.sha256()}
                _check_made_of(read_record(out / job.name), digests[key])
        except InputError as error:
            raise InputError(f"{job.name}: {error}") from None


def _check_made_of(record: dict[str, Any], digests: dict[str, str]) -> None:
    """Refuses other images than the model was made of, which have the same path or name."""
    for name, digest in digests.items():
        if record.get("images", {}).get(f"{name} sha256", digest) != digest:
            raise InputError(
                f"its {name} images have changed since it was made, and its scores with them; give "
                "another folder for the pool, or delete this model"
            )
