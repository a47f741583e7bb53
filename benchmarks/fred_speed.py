"""How long FreD's inversion takes: images a minute, the share of each term, and its dear variants.

    python benchmarks/fred_speed.py [--generator FILE.toml]     a ResNet-8 of the pool, one thread
    python benchmarks/fred_speed.py --device cuda --samples 1000    ... and a ResNet-18

``inversion``: the default search, all classes alike, in several turns of which the first warms up;
the shares of its terms come from one more run, which on an accelerator waits for the end of each
part and is therefore slower. ``an iteration``: one step of the whole objective with both
stabilities, for each form of parameter stability and without either, in turns in one run; the
search takes such a step every second time and in part of its iterations only. Where no generator
is given, one of the default's size with random weights stands in: it costs the same. On a CPU
these are seconds of the processor. Writes ``results/fred_speed.json`` after each network and keeps
what it holds of other devices.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import torch
import tyro
from result_file import result_head
from torch import nn

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.datasets import datasets
from bezoar.generators import AdversarialTraining, load_generator
from bezoar.generators.public_generator import PublicGenerator
from bezoar.methods.fred_inversion import Inversion, arranged, descended, invert, prepared
from bezoar.methods.fred_objective import Objective, Stopwatch
from bezoar.methods.fred_parameter_stability import ParameterStability
from bezoar.methods.fred_sources import every_class
from bezoar.networks.image_generators import ImageCritic, ImageGenerator
from bezoar.pools import open_pool
from bezoar.records import write_json

RESULTS = Path(__file__).parent / "results" / "fred_speed.json"
POOL = Path(__file__).parent / "pool"
SHAPE = (3, 32, 32)
FACTS = datasets.get("cifar10")
CASES = {"cpu": ("resnet-8",), "cuda": ("resnet-8", "resnet-18")}
FORMS: dict[str, dict[str, Any]] = {
    "first order": {},
    "second order": {"parameter": ParameterStability(form="second order")},
    "sharpness": {"parameter": ParameterStability(form="sharpness")},
    "no parameter stability": {"parameter_weight": 0.0},
    "no stability": {"parameter_weight": 0.0, "input_weight": 0.0},
}


@dataclass
class Options:
    """What to run.

    Attributes:
        generator: as ``bezoar generator train`` wrote it, for images of 32x32.
        device: cpu or cuda.
        threads: of torch, on a CPU.
        samples: that are searched.
        turns: of each; the first, which warms up, is not counted.
        steps: in a turn of the single iterations.
        search: iterations of the search; by default those of the method.
        pool: its folder.
        out: the result file.
    """

    generator: Path | None = None
    device: str = "cpu"
    threads: int = 1
    samples: int = 250
    turns: int = 4
    steps: int = 3
    search: int | None = None
    pool: Path = POOL
    out: Path = RESULTS


def suspect(name: str, pool: Path, device: torch.device) -> Classifier:
    """The first clean model of the pool with this network; random weights for a ResNet-18."""
    if name == "resnet-8":
        opened = open_pool(pool)
        entries = [e for e in opened.entries if (e.data, e.status) == ("cifar10", "clean")]
        entry = next(e for e in entries if e.network.endswith(name))
        return opened.load(entry, device=device.type).classifier
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = networks.build(name, num_classes=10)
    height, width = SHAPE[1:]
    return Classifier(
        network.to(device), mean=FACTS.mean, std=FACTS.std, input_size=(height, width)
    )


def fresh_generator() -> PublicGenerator:
    """Generator and critic of the default's size, with random weights."""
    size = AdversarialTraining()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ImageGenerator(SHAPE, latent=size.latent, width=size.width)
        critic = ImageCritic(SHAPE, width=size.width, norm="none")
    return PublicGenerator(network, size.latent, SHAPE, critic, apart=True)


def size_of(network: nn.Module | None) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in network.parameters()) if network is not None else 0


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Of the processor on a CPU, of the clock elsewhere."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    started = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def peak(device: torch.device) -> dict[str, float]:
    """The most memory since the last call, on an accelerator; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    used = torch.cuda.max_memory_allocated(device) / 2**20
    torch.cuda.reset_peak_memory_stats(device)
    return {"peak MiB": used}


def searched(
    classifier: Classifier, generator: PublicGenerator, settings: Inversion, options: Options
) -> dict[str, Any]:
    """The whole search, turn after turn, and the shares of its terms from one run more."""
    device = classifier.device
    classes = classifier.num_classes
    labels = every_class(classes, options.samples // classes)

    def run(synchronised: bool = False) -> dict[str, Any]:
        return invert(
            classifier, generator, labels, settings, seed=0, synchronised=synchronised
        ).record

    peak(device)
    seconds = [seconds_of(run, device) for _ in range(options.turns)][1:]
    memory = peak(device)
    shares = run(synchronised=True)["shares"]
    return {
        "images": len(labels),
        "iterations": settings.iterations,
        "whole search seconds": median(seconds),
        "images a minute": 60 * len(labels) / median(seconds),
        "slowest to fastest turn": max(seconds) / min(seconds),
        "turns": len(seconds),
        "share of": dict(sorted(shares.items())),
    } | memory


def iterated(
    classifier: Classifier, generator: PublicGenerator, settings: Inversion, options: Options
) -> list[dict[str, Any]]:
    """Steps of the search with all of its terms, for each form, in turns."""
    device = classifier.device
    everything = {"plain": 0.0, "ramp": 0.0, "stability_every": 1, "iterations": options.steps}
    labels = every_class(classifier.num_classes, options.samples // classifier.num_classes)
    labels = labels[arranged(labels, settings.batch_size, 0)[0]]
    frozen, generator = prepared(classifier, generator, labels, settings, None)
    start = generator.latents(len(labels), torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    memory: dict[str, dict[str, float]] = {}
    for turn in range(options.turns):
        for form, changes in FORMS.items():
            how = msgspec.structs.replace(settings, **everything, **changes)
            draws = torch.Generator(device).manual_seed(turn)
            objective = Objective(
                frozen, generator, labels.to(device), how, draws, watch=Stopwatch(device)
            )

            def steps(objective: Objective = objective, how: Inversion = how) -> None:
                descended(objective, start, how, lambda _share: None)

            peak(device)
            spent = seconds_of(steps, device) / options.steps
            memory[form] = peak(device)
            if turn:
                seconds[form].append(spent)
    rows = []
    for form, taken in seconds.items():
        ratios = [a / b for a, b in zip(taken, seconds["first order"], strict=True)]
        rows.append(
            {
                "form": form,
                "batch": len(labels),
                "seconds of a step": median(taken),
                "times first order": median(ratios),
                "lowest ratio": min(ratios),
                "highest ratio": max(ratios),
                "turns": len(taken),
            }
            | memory[form]
        )
    return rows


def main(options: Options) -> None:
    """Measures every network and writes the result."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    given = options.generator
    generator = load_generator(given, device=device) if given else fresh_generator().to(device)
    settings = Inversion()
    if options.search is not None:
        settings = msgspec.structs.replace(settings, iterations=options.search)
    tables = ("inversion", "an iteration")
    before = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    result = result_head(__file__, "Seconds of FreD's inversion", f"{options.threads} thread(s)")
    if device.type == "cuda":
        result["accelerator"] = torch.cuda.get_device_name()
    elif "accelerator" in before:
        result["accelerator"] = before["accelerator"]
    for table in tables:
        result[table] = [row for row in before.get(table, []) if row["device"] != options.device]
    for name in CASES[device.type]:
        classifier = suspect(name, options.pool, device)
        facts = {
            "case": name,
            "device": options.device,
            "parameters": {
                "network": size_of(classifier.network),
                "generator": size_of(generator.network),
                "critic": size_of(generator.critic),
            },
        }
        row = facts | searched(classifier, generator, settings, options)
        print(row, flush=True)
        result["inversion"].append(row)
        write_json(options.out, {key: value for key, value in result.items() if value})
        for row in iterated(classifier, generator, settings, options):
            print(row, flush=True)
            result["an iteration"].append({"case": name, "device": options.device} | row)
        write_json(options.out, {key: value for key, value in result.items() if value})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
