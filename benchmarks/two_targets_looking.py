"""A network with two like backdoors, scanned; the task that ``two_targets.py`` runs many times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from null_networks import null_network

from bezoar.attacks import Attack, parse_attack
from bezoar.executors import report
from bezoar.pipeline import scan

SIZES = {"digits": 3, "cifar10": 4, "gtsrb": 4}
MARGINS = {"digits": 0, "cifar10": 2, "gtsrb": 2}  # as far as the training shifts images
CLASSES = {"digits": 10, "cifar10": 10, "gtsrb": 43}


def attack_on(task: str, number: int) -> Attack:
    """Two patches in two corners, with targets that change with the number."""
    where, classes = f"size={SIZES[task]}:margin={MARGINS[task]}", CLASSES[task]
    first = number % classes
    second = (first + 1 + number % (classes - 1)) % classes
    return parse_attack(
        f"several:triggers=bad-nets:target={first}:{where}:position=bottom-right"
        f"+bad-nets:target={second}:{where}:position=top-left"
    )


def look(*, task: str, number: int, keep: str | None) -> dict[str, Any]:
    """Trains one network, or takes it from ``keep``, and scans it."""
    torch.set_num_threads(1)
    report("training", 0.0)
    attack = attack_on(task, number)
    classifier, clean, facts = null_network(task, number, keep and Path(keep), attack=attack)
    targets = [part.target for part in attack.parts]
    record = scan(classifier, clean, seed=0, progress=report).record
    suspects = record["suspects"]
    return facts | {
        "targets": targets,
        "verdict": record["verdict"],
        "suspects": suspects,
        "p of targets": [record["p_values"][k] for k in targets],
        "targets suspected": len({*targets} & {*suspects}),
        "others suspected": len({*suspects} - {*targets}),
        "witnesses": {
            e["method"]: {
                "values": e["statistic"]["values"],
                "p of targets": [e["statistic"]["p_values"][k] for k in targets],
            }
            for e in record["evidence"]
        },
    }
