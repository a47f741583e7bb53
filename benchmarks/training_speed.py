"""How fast does the training loop train, and how accurate is the network when it is done?

    python benchmarks/training_speed.py                  the CPU rows
    python benchmarks/training_speed.py --device cuda    the GPU rows

CPU: ResNet-8 and WRN-16-1 on CIFAR-10 with all cores, and the images a second of each number format
and layout, side by side in one run. GPU: ResNet-18 to 93.5 % in under a minute. Test images are
looked at once, after the last step. Writes ``results/training_speed.json`` row by row and leaves
out what is there, so that it can be interrupted.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
import tyro
from result_file import result_head

from bezoar.classifier import Classifier
from bezoar.datasets import datasets, open_dataset
from bezoar.device import has_fast_bfloat16, resolve_device
from bezoar.metrics import accuracy
from bezoar.networks.architectures import build_network
from bezoar.records import write_json
from bezoar.training import Recipe, fit

RESULTS = Path(__file__).parent / "results" / "training_speed.json"
CPU_RECIPE = Recipe(
    epochs=8,
    batch_size=128,
    learning_rate=0.1,
    schedule="one-cycle",
    crop_padding=2,
    border="reflect",
    flip=True,
    bfloat16=True,
)
GPU_RECIPE = Recipe(
    epochs=16,
    batch_size=512,
    learning_rate=0.4,
    schedule="one-cycle",
    label_smoothing=0.1,
    crop_padding=2,
    border="reflect",
    flip=True,
    ema=0.99,
    bfloat16=True,
    compile=True,
)
CPU_RUNS = (("resnet-8", {"width": 16}, 16), ("wrn-16-1", {}, 8))
GPU_RUNS = (("resnet-18", {}, 16),)


@dataclass
class Options:
    """What to run.

    Attributes:
        device: cpu or cuda.
        seeds: trainings of each network; 0 measures the formats only.
        threads: of torch, on the CPU.
        only: this network only.
    """

    device: str = "cpu"
    seeds: int = 1
    threads: int = 2
    only: str | None = None


def trained(
    name: str, arguments: dict[str, Any], epochs: int, seed: int, device: torch.device
) -> dict[str, Any]:
    """One network from its first step to its test accuracy."""
    recipe = CPU_RECIPE if device.type == "cpu" else GPU_RECIPE
    recipe = msgspec.structs.replace(recipe, epochs=epochs)
    train, test = open_dataset("cifar10", "train"), open_dataset("cifar10", "test")
    classifier = fresh(name, arguments, seed, device)
    started = time.perf_counter()
    history = fit(classifier, train, recipe, seed=seed)
    whole = time.perf_counter() - started
    answers = classifier.logits(test).argmax(1).cpu()
    return {
        "model": name,
        "arguments": json.dumps(arguments),
        "device": device_name(device),
        "epochs": epochs,
        "seed": seed,
        "seconds": history.seconds,
        "seconds with moving the data": whole,
        "images a second": len(train) * epochs / history.seconds,
        "acc": accuracy(answers, test.require_labels("measuring").cpu()).as_record(),
    }


def throughput(name: str, arguments: dict[str, Any], device: torch.device) -> list[dict[str, Any]]:
    """Images a second of forward and backward, for every format and layout, in turns."""
    kinds = [(bf16, last) for bf16 in (False, True) for last in (False, True)]
    seconds: dict[tuple[bool, bool], list[float]] = {kind: [] for kind in kinds}
    images = torch.rand(128, 3, 32, 32, device=device)
    labels = torch.randint(0, 10, (128,), device=device)
    networks = {}
    for kind in kinds:
        network = fresh(name, arguments, 0, device).network.train()
        layout = torch.channels_last if kind[1] else torch.contiguous_format
        networks[kind] = network.to(memory_format=layout), images.contiguous(memory_format=layout)
    for turn in range(6):
        for kind, (network, batch) in networks.items():
            started = time.perf_counter()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=kind[0]):
                loss = torch.nn.functional.cross_entropy(network(batch), labels)
            loss.backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first one warms up
                seconds[kind].append(time.perf_counter() - started)
    base = sorted(seconds[False, False])[len(seconds[False, False]) // 2]
    rows = []
    for (bf16, last), times in seconds.items():
        middle = sorted(times)[len(times) // 2]
        rows.append(
            {
                "model": name,
                "device": device_name(device),
                "format": "bfloat16" if bf16 else "float32",
                "layout": "channels last" if last else "contiguous",
                "images a second": 128 / middle,
                "ratio": base / middle,
            }
        )
    return rows


def fresh(name: str, arguments: dict[str, Any], seed: int, device: torch.device) -> Classifier:
    """An untrained CIFAR-10 network."""
    facts = datasets.get("cifar10")
    torch.manual_seed(seed)
    network = build_network(f"bezoar:{name}", arguments, num_classes=10, channels=3)
    return Classifier(network.to(device), mean=facts.mean, std=facts.std, input_size=(32, 32))


def device_name(device: torch.device) -> str:
    """What a reader wants to know of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    fast = "with" if has_fast_bfloat16(device) else "without"
    return f"CPU, {torch.get_num_threads()} threads, {fast} AVX-512 BF16"


def main(options: Options) -> None:
    """Runs what is missing."""
    device = resolve_device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    result: dict[str, Any] = {"trained": [], "formats": []}
    if RESULTS.exists():
        result |= json.loads(RESULTS.read_text(encoding="utf-8"))
    result |= result_head(__file__, "Training", f"{torch.get_num_threads()} threads")

    def write() -> None:
        write_json(RESULTS, {name: value for name, value in result.items() if value})

    def done(rows: list[dict[str, Any]], **facts: Any) -> bool:
        return any(facts.items() <= row.items() for row in rows)

    for name, arguments, epochs in CPU_RUNS if device.type == "cpu" else GPU_RUNS:
        if options.only not in (None, name):
            continue
        here = device_name(device)
        if not done(result["formats"], model=name, device=here):
            result["formats"] += throughput(name, arguments, device)
            write()
        for seed in range(options.seeds):
            if not done(result["trained"], model=name, device=here, seed=seed, epochs=epochs):
                result["trained"].append(trained(name, arguments, epochs, seed, device))
                write()


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
