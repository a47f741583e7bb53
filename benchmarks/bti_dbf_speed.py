"""How long BTI-DBF takes: ours in full, the published schedule from the seconds of one epoch each.

    BEZOAR_DATA=... python benchmarks/bti_dbf_speed.py [--device cuda --whole]

The third-party VGG ``ibau_cifar10_badnets`` with 2,500 clean images on one thread. Ours is run from
end to end. The published schedule would take hours on a CPU, so each of its stages is run for one
epoch (pre-training, mask, generator, unlearning) and multiplied by the number of its epochs; with
``--whole`` it is run in full instead. On a GPU a backdoor-free ResNet-18 with random weights takes
part as well, with all five rounds. Writes ``results/bti_dbf_speed.json``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import third_party
import torch
import tyro
from result_file import result_head

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.images import ImageSet
from bezoar.methods import BtiDbf
from bezoar.methods.bti_dbf_decoupling import decouple
from bezoar.methods.bti_dbf_inversion import invert_generator, pretrain
from bezoar.methods.bti_dbf_unlearning import generated_loss
from bezoar.methods.neural_cleanse_triggers import pixels_of
from bezoar.records import write_json
from bezoar.training import fit

RESULTS = Path(__file__).parent / "results" / "bti_dbf_speed.json"
MODEL = "ibau_cifar10_badnets"


@dataclass
class Options:
    """What to run.

    Attributes:
        images: clean images.
        device: where.
        threads: of torch.
        whole: run the published schedule in full.
    """

    images: int = 2500
    device: str = "cpu"
    threads: int = 1
    whole: bool = False


def seconds_of(work: Callable[[], Any], device: str) -> dict[str, float]:
    """Wall and processor seconds."""
    started, used = time.perf_counter(), time.process_time()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return {
        "seconds": time.perf_counter() - started,
        "processor seconds": time.process_time() - used,
    }


def one_epoch_each(classifier: Classifier, clean: ImageSet, device: str) -> dict[str, Any]:
    """Seconds of one epoch of each stage of the published schedule, and of the whole from them."""
    method = BtiDbf.published()
    pixels, _ = pixels_of(clean, classifier)
    short = msgspec.structs.replace
    inversion = short(
        method.inversion,
        epochs=1,
        pretraining=short(method.inversion.pretraining, epochs=1),
    )
    network, state = classifier.copy(), {}
    network.network.eval()

    def pretraining() -> None:
        state["start"] = pretrain(network, network.split(), pixels, inversion, seed=0)

    def mask() -> None:
        settings = short(method.decoupling, epochs=1)
        state["mask"] = decouple(network, clean, None, settings, seed=0)

    def generator() -> None:
        state["trigger"] = invert_generator(
            network, state["mask"], pixels, inversion, seed=0, start=state["start"]
        )

    def unlearning() -> None:
        split = network.split()
        loss = generated_loss(
            network, [state["trigger"].stamp], method.unlearning, live=split, anchor=split
        )
        fit(network, clean, short(method.unlearning.recipe, epochs=1), seed=0, loss=loss)

    epochs = {
        "pre-training": (pretraining, method.inversion.pretraining.epochs),
        "mask": (mask, method.rounds * method.decoupling.epochs),
        "generator": (generator, method.rounds * method.inversion.epochs),
        "unlearning": (unlearning, method.rounds * method.unlearning.recipe.epochs),
    }
    stages, total = {}, 0.0
    for name, (work, count) in epochs.items():
        taken = seconds_of(work, device)
        total += count * taken["processor seconds"]
        stages[name] = taken | {"epochs": count}
        print(name, stages[name], flush=True)
    return {"one epoch each": stages, "processor seconds, from one epoch each": total}


def main(options: Options) -> None:
    """Times both schedules and writes the result."""
    torch.set_num_threads(options.threads)
    root = Path(os.environ["BEZOAR_DATA"])
    loaded, facts = third_party.load(root / "models" / MODEL)
    loaded.classifier.network.to(options.device)
    clean = third_party.test_images(root, facts).sample(options.images, seed=0)
    classifier = loaded.classifier.trace(clean.shape)
    runs: list[dict[str, Any]] = []

    def run(case: str, model: Classifier, method: BtiDbf) -> None:
        taken = seconds_of(lambda: method.remove(model, clean, seed=0), options.device)
        runs.append({"case": case, "images": len(clean), "device": options.device} | taken)
        print(runs[-1], flush=True)

    run("ours", classifier, BtiDbf())
    if options.whole:
        run("published, run in full", classifier, BtiDbf.published())
    else:
        published = one_epoch_each(classifier, clean, options.device)
        ratio = published["processor seconds, from one epoch each"] / runs[0]["processor seconds"]
        runs.append({"case": "published", "images": len(clean), "device": options.device})
        runs[-1] |= published | {"ratio to ours": ratio}
        print(runs[-1], flush=True)
    if options.device != "cpu":
        wide = Classifier(networks.build("resnet-18", num_classes=10), mean=0.5, std=0.25)
        wide.network.to(options.device)
        run("ours, ResNet-18 with random weights, five rounds", wide, BtiDbf(strong=1.0))
    record = result_head(
        __file__, "Seconds of BTI-DBF", f"{options.threads} thread(s), {options.device}"
    ) | {"runs": runs}
    write_json(RESULTS, record)


if __name__ == "__main__":
    main(tyro.cli(Options))
