"""A network with other weights than its own: a differentiable function of them.

``torch.func.functional_call`` puts the weights in place for the forward pass alone. Gradient
checkpointing computes parts of that pass again on the way back, with the network's own weights
then, and its gradients would be those of another function: it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.func import functional_call

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.network_tensors import named_tensors

RECOMPUTES = (
    "the network computes parts of its forward pass anew for gradients (gradient checkpointing), "
    "with its own weights in place of those that are tried; turn that off first, for example with "
    "set_grad_checkpointing(False)"
)
_REENTRANT = "CheckpointFunctionBackward"  # as torch names the older kind in its graph


def logits_with(classifier: Classifier, images: Tensor, changed: Mapping[str, Tensor]) -> Tensor:
    """Logits (b, classes) of images (b, c, h, w) in [0, 1] with other weights; differentiable.

    The network runs in its current mode. In training mode norms use the statistics of the batch,
    and the running ones stay as they were.

    Args:
        classifier: whose own weights stay as they are.
        images: in [0, 1].
        changed: by name, what stands in the place of parameters or buffers.

    Raises:
        InputError: the network recomputes parts of its pass for gradients.
    """
    network = classifier.network
    if any(module.training for module in network.modules()):
        changed = {name: b.clone() for name, b in network.named_buffers()} | dict(changed)
    state, places = named_tensors(network), _places(network)
    everywhere = {
        place: tensor for name, tensor in changed.items() for place in places[id(state[name])]
    }
    seen = classifier.normalise(images)
    try:
        with disable_saved_tensors_hooks(RECOMPUTES):
            # torch would find these places itself, but it visits a module that has two names twice,
            # and then puts the product back in place of the parameter.
            output = functional_call(network, everywhere, (seen,), tie_weights=False)
    except RuntimeError as error:
        if RECOMPUTES in str(error):
            raise InputError(RECOMPUTES) from None
        raise
    logits = classifier.logits_of(output)
    if _recomputes(logits):
        raise InputError(RECOMPUTES)
    return logits


def check_other_weights(classifier: Classifier) -> None:
    """Tries on two random images whether the network can be run with other weights.

    Args:
        classifier: traced; it runs in its current mode.

    Raises:
        InputError: it recomputes parts of its pass for gradients.
    """
    generator = torch.Generator().manual_seed(0)
    probe = torch.rand((2, *classifier.input_shape), generator=generator).to(classifier.device)
    named = classifier.network.named_parameters()
    with torch.enable_grad():
        weights = {name: tensor.detach().requires_grad_() for name, tensor in named}
        logits_with(classifier, probe, weights)


def _recomputes(logits: Tensor) -> bool:
    """Whether the graph holds a part that is computed anew on the way back."""
    left = [logits.grad_fn]
    seen = set()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if node.name() == _REENTRANT:
            return True
        seen.add(node)
        left += [before for before, _ in node.next_functions]
    return False


def _places(network: nn.Module) -> dict[int, list[str]]:
    """``id`` of a parameter or buffer → its names, one for each module that holds it."""
    places: dict[int, list[str]] = {}
    for path, module in network.named_modules():
        held = (module.named_parameters, module.named_buffers)
        for name, tensor in (pair for names in held for pair in names(path, recurse=False)):
            places.setdefault(id(tensor), []).append(name)
    return places
