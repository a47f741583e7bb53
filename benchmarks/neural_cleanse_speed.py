"""Neural Cleanse with all classes in one batch against one class after the other, in one run.

python benchmarks/neural_cleanse_speed.py
python benchmarks/neural_cleanse_speed.py --device cuda --settings default published

Both take the same images in the same order with the same settings, so they must find the same
masks; the record says how far apart they are. The plain loop is what public code does: one class,
one mini-batch, its success read back at every step; the network's weights get no gradients in
either. Random weights take the same time as trained ones. One pixel for each class is added to its
logit, so that small triggers exist and classes stop at different times, as on real networks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
import torch.nn.functional as F
import tyro
from result_file import result_head
from torch import Tensor

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.device import resolve_device
from bezoar.methods.neural_cleanse_inversion import invert
from bezoar.methods.neural_cleanse_schedule import Inversion, Schedule
from bezoar.methods.neural_cleanse_triggers import Logits, predicted, stamped
from bezoar.records import write_json

RESULTS = Path(__file__).parent / "results" / "neural_cleanse_speed.json"
NETWORKS: dict[str, dict[str, int]] = {"resnet-8": {"width": 16}, "wrn-16-1": {}}


@dataclass
class Options:
    """What to run.

    Attributes:
        classes: numbers of classes.
        device: where; the accelerator where there is one.
        threads: of torch.
        images: clean images of 32x32.
        settings: of the inversion: the library's defaults, or the published ones, whose epochs are
            twenty times as long.
        epochs: at most so many, of either settings.
        repetitions: the fastest one counts.
        out: the record.
    """

    classes: tuple[int, ...] = (10, 43)
    device: str | None = None
    threads: int = 1
    images: int = 500
    settings: tuple[Literal["default", "published"], ...] = ("default",)
    epochs: int = 30
    repetitions: int = 1
    out: Path = RESULTS


def plain_loop(
    logits: Logits, images: Tensor, classes: Sequence[int], settings: Inversion, seed: int
) -> tuple[Tensor, int]:
    """One class after the other; its masks (K, 1, h, w) and the images that went through."""
    masks, passes = [], 0
    for k in classes:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + k)
        uniform = torch.rand(1 + images.shape[1], *images.shape[2:], generator=generator)
        free = torch.atanh((2 * uniform - 1).clamp(-0.999, 0.999)).to(images).requires_grad_()
        optimizer = torch.optim.Adam([free], settings.learning_rate, betas=settings.betas)
        target = torch.full((settings.batch_size,), k, device=images.device)
        schedule = Schedule(settings, settings.penalty or 1 / free[0].numel())
        stream = torch.zeros(0, dtype=torch.int64)
        best = free.detach()
        for _epoch in range(settings.epochs):
            hits = norm = 0.0
            for _ in range(settings.steps):
                while len(stream) < settings.batch_size:
                    stream = torch.cat([stream, torch.randperm(len(images), generator=generator)])
                batch = images[stream[: settings.batch_size].to(images.device)]
                stream = stream[settings.batch_size :]
                both = (torch.tanh(free) + 1) / 2
                mask, pattern = both[:1], both[1:]
                answers = logits((1 - mask) * batch + mask * pattern)
                loss = F.cross_entropy(answers, target) + schedule.penalty * mask.sum()
                (free.grad,) = torch.autograd.grad(loss, [free])
                optimizer.step()
                hits += (answers.argmax(1) == target).float().mean().item() / settings.steps
                norm += mask.detach().sum().item() / settings.steps
            passes += settings.steps * settings.batch_size
            if schedule.update(hits, norm) or schedule.best == math.inf:
                best = ((torch.tanh(free) + 1) / 2).detach()
            if schedule.done:
                break
        masks.append(best[:1])
        predicted(logits, stamped(images, best[:1], best[1:]))  # success over all images, as invert
    return torch.stack(masks), passes


def compare(
    name: str, classes: int, settings: Inversion, options: Options, device: torch.device
) -> dict[str, Any]:
    """Times both ways on one network."""
    torch.manual_seed(0)
    network = networks.build(name, num_classes=classes, **NETWORKS[name]).to(device).eval()
    network.requires_grad_(False)
    classifier = Classifier(network, mean=0.5, std=0.25)
    generator = torch.Generator().manual_seed(0)
    images = 0.8 * torch.rand(options.images, 3, 32, 32, generator=generator).to(device)

    def logits(batch: Tensor) -> Tensor:
        return classifier(batch) + 60 * batch[:, 0].flatten(1)[:, :classes]

    def batched() -> tuple[Tensor, int]:
        triggers = invert(logits, images, None, range(classes), settings, seed=0)
        return triggers.masks, triggers.passes

    def plain() -> tuple[Tensor, int]:
        return plain_loop(logits, images, range(classes), settings, seed=0)

    seconds: dict[str, float] = {"batched": math.inf, "plain": math.inf}
    masks, passes = {}, {}
    logits(images[: settings.batch_size])  # the first call of a device is slow
    for _ in range(options.repetitions):
        for way, work in (("batched", batched), ("plain", plain)):
            synchronize(device)
            started = time.perf_counter()
            masks[way], passes[way] = work()
            synchronize(device)
            seconds[way] = min(seconds[way], time.perf_counter() - started)
    norms = {way: mask.flatten(1).sum(1) for way, mask in masks.items()}
    gaps = (norms["batched"] / norms["plain"] - 1).abs()
    return {
        "network": name,
        "classes": classes,
        "settings": msgspec.to_builtins(settings),
        "plain loop (s)": seconds["plain"],
        "all classes at once (s)": seconds["batched"],
        "plain / at once": seconds["plain"] / seconds["batched"],
        "image passes of the plain loop": passes["plain"],
        "image passes at once": passes["batched"],
        "largest relative gap of |m|_1": float(gaps.max()),
        "median relative gap of |m|_1": float(gaps.median()),
        "largest gap of a mask": float((masks["batched"] - masks["plain"]).abs().max()),
    }


def synchronize(device: torch.device) -> None:
    """Waits for work that was only queued."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def main(options: Options) -> None:
    """Measures both networks at every number of classes."""
    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    presets = {"default": Inversion(), "published": Inversion.published()}
    rows = []
    for name in NETWORKS:
        for classes in options.classes:
            for preset in options.settings:
                settings = msgspec.structs.replace(
                    presets[preset], epochs=options.epochs, exclude_own=False
                )
                row = compare(name, classes, settings, options, device)
                rows.append({"preset": preset} | row)
                print(rows[-1], flush=True)
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    record = result_head(
        __file__,
        "Neural Cleanse: all classes in one batch against one class after the other",
        f"{options.threads} thread(s), {accelerator}",
        command=(
            f"python benchmarks/neural_cleanse_speed.py --device {device.type} "
            f"--classes {' '.join(map(str, options.classes))} "
            f"--settings {' '.join(options.settings)} --epochs {options.epochs} "
            f"--images {options.images} --repetitions {options.repetitions}"
        ),
    )
    write_json(options.out, record | {"runs": rows})


if __name__ == "__main__":
    main(tyro.cli(Options))
