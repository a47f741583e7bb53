"""Who repaired a network, with what, and what that changed, as the report and the JSON show it."""

from __future__ import annotations

from typing import Any

from bezoar.classifier import Classifier
from bezoar.generators.public_generator import PublicGenerator
from bezoar.images import ImageSet
from bezoar.methods import Method
from bezoar.network_tensors import saved_tensors
from bezoar.networks.purified import Purified


def method_record(method: Method, reason: str) -> dict[str, Any]:
    """The method, and in a sentence why it was taken."""
    return {
        "name": method.name,
        "title": method.title,
        "paper": method.paper,
        "reason": reason,
        "configuration": method.configuration(),
    }


def public_record(public: ImageSet | PublicGenerator | None) -> dict[str, Any] | None:
    """What the user had instead of images of the task; None for nothing."""
    if public is None:
        return None
    if isinstance(public, ImageSet):
        return {"kind": "images", "count": len(public), "sha256": public.sha256()}
    return {
        "kind": "generator",
        "latent": public.latent,
        "apart": public.apart,
        "independence": public.independence,
        "origin": dict(public.origin),
        "images": public_record(public.images),
    }


def changes(before: Classifier, after: Classifier) -> list[dict[str, Any]]:
    """For each changed tensor of the state dict: ||new - old|| / ||old||, largest first.

    Of a network that got a purifier in front, the tensors that were there before.
    """
    rows = []
    front = _new_front(before, after)
    new_state = saved_tensors((after if front is None else front).network)
    for name, old in saved_tensors(before.network).items():
        if not old.is_floating_point():
            continue  # counters of batches say nothing
        gap = float((new_state[name].float() - old.float()).norm())
        size = float(old.float().norm())
        if gap:
            rows.append(
                {
                    "tensor": name,
                    "shape": list(old.shape),
                    "relative_change": gap / size if size else None,
                }
            )
    return sorted(rows, key=lambda row: -(row["relative_change"] or float("inf")))


def wrapped(before: Classifier, after: Classifier) -> dict[str, Any] | None:
    """What a repair put in front of the network: the purifier's parameters; None for nothing."""
    front = _new_front(before, after)
    if front is None:
        return None
    return {"parameters": sum(p.numel() for p in front.purifier.parameters())}


def _new_front(before: Classifier, after: Classifier) -> Purified | None:
    """``after``'s network where it is a purifier before ``before``'s, which may be purified too."""
    network = after.network
    same = network.state_dict().keys() == before.network.state_dict().keys()
    return network if isinstance(network, Purified) and not same else None
