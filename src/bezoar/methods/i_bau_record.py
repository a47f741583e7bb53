"""What I-BAU tells of its rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bezoar.methods.implicit_hypergradient import Hypergradient
from bezoar.methods.pattern_effect import Effect


@dataclass(frozen=True)
class Look:
    """What was seen on the held-out images before a round, or after the last one.

    Attributes:
        effect: of a pattern that was found on the network of that moment.
        agreement: the share of plain images that are answered as by the original network.
    """

    effect: Effect
    agreement: float


def rounds_record(
    looks: Sequence[Look], seen: Sequence[Hypergradient], classes: tuple[str, ...]
) -> dict[str, Any]:
    """The rounds, the class that the first pattern suggests, and curves.

    Args:
        looks: before each round and after the last; the first one is of the original network.
        seen: every step of the network.
        classes: the class names.
    """
    effects = [look.effect for look in looks]
    first = effects[0].as_record(classes)
    ratios = [float(one.ratio) for one in seen]
    by_round = {
        "cross-entropy under a fresh pattern": [effect.cross_entropy for effect in effects],
        "share of answers that a fresh pattern changes": [effect.changed for effect in effects],
        "agreement with the original": [look.agreement for look in looks],
    }
    by_step = {
        "outer loss": [float(one.value) for one in seen],
        "implicit part of the gradient, to the direct one": ratios,
    }
    rounds, steps = list(range(len(looks))), list(range(1, len(seen) + 1))
    return {key: first[key] for key in ("suspected_target", "suspected_class", "target_share")} | {
        "rounds": [
            look.effect.as_record(classes) | {"agreement": look.agreement} for look in looks
        ],
        "implicit": {
            "growth": [float(one.growth) for one in seen],
            "ratio": ratios,
            "terms": [one.terms for one in seen],
            "negative_curvature": sum(one.negative for one in seen),
        },
        "curves": [
            {"name": name, "x_name": unit, "x": x, "y": values}
            for unit, x, curves in (("round", rounds, by_round), ("step", steps, by_step))
            for name, values in curves.items()
        ],
    }


def told(
    looks: Sequence[Look],
    classes: tuple[str, ...],
    *,
    settled: float | None,
    undone: float | None,
) -> list[str]:
    """What the user should know before trusting the repair.

    Args:
        looks: as above.
        classes: the class names.
        settled: the share of answers that a fresh pattern may change; None for any.
        undone: the share of answers to plain images that an undone round went beyond, if one was.
    """
    flags = []
    if undone is not None:
        flags.append(
            f"Round {len(looks)} changed more than {100 * undone:g} % of the held-out answers to "
            "plain images and was undone."
        )
    last = looks[-1].effect
    if settled is not None and last.changed > settled:
        flags.append(
            f"After the last round a fresh universal pattern still changes "
            f"{100 * last.changed:.0f} % of the held-out answers, and leads {100 * last.led:.0f} % "
            f"of the other images into class {classes[last.target]}; networks without a backdoor "
            "can be moved so, too."
        )
    return flags
