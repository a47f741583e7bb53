"""Cutting a network in two at one layer, and finding the deepest layer where that can be done.

Both halves run the whole network with a hook, so any network works; nothing stays attached. What
runs behind the cut gets one blank image through the layers before it, not as many as there are
activations, so that ``back`` costs little more than the layers behind the cut.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bezoar.errors import InputError

Edit = Callable[[Tensor], Tensor]
"""The output of a layer → what the rest of the network gets instead."""

_FAILURES = (RuntimeError, ValueError, IndexError, AssertionError)  # of layers given other shapes


@dataclass(frozen=True)
class Split:
    """A network f cut at one layer: ``back(front(images))`` equals the whole.

    Attributes:
        layer: name of the module whose output is the cut.
        front: images (n, c, h, w) in [0, 1] → the layer's output.
        back: the layer's output → logits (n, C).
        both: images → the layer's output and the logits, from one pass.
        edited: images and an ``Edit`` → logits of the network whose cut is edited.
    """

    layer: str
    front: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]
    both: Callable[[Tensor], tuple[Tensor, Tensor]]
    edited: Callable[[Tensor, Edit], Tensor]


def split_at(
    run: Callable[[Tensor], Tensor], network: nn.Module, layer: str, probe: Tensor
) -> Split:
    """Cuts ``network`` at the output of the module called ``layer``.

    Args:
        run: images → logits, by way of the network; in eval mode while this function runs.
        network: what has the module.
        layer: its name.
        probe: two different images (2, c, h, w) in [0, 1] to try the cut on.

    Raises:
        InputError: there is no such module, it gives no single tensor, or the network also passes
            information around it (a shortcut), so that it does not cut the network.
    """
    names = dict(network.named_modules())
    if layer not in names or not layer:
        raise InputError(
            f"the network has no module {layer!r}; it has: {', '.join(list(names)[1:30])}"
        )
    module = names[layer]

    def both(images: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise InputError(
                    f"module {layer!r} gives a {type(output).__name__}; expected one tensor"
                )
            seen.append(output.clone())  # what follows may work in place

        with _hooked(module, keep):
            logits = run(images)
        if len(seen) != 1:
            raise InputError(f"module {layer!r} runs {len(seen)} times in one forward pass")
        return seen[0], logits

    def edited(images: Tensor, edit: Edit) -> Tensor:
        with _hooked(module, lambda _module, _inputs, output: edit(output)):
            return run(images)

    def filled(activations: Tensor, blanks: int) -> Tensor:
        blank = torch.full((blanks, *probe.shape[1:]), 0.5, device=activations.device)
        return edited(blank, lambda _output: activations.clone())

    with torch.no_grad():
        activations, whole = both(probe)
    blanks = 0  # 0: as many as there are activations
    for attempt in (1, 0):
        try:
            with torch.no_grad():
                halves = filled(activations, attempt or len(probe))
        except _FAILURES:  # shapes that were fixed before the cut
            if not attempt:
                raise
            continue
        blanks = attempt
        if halves.shape == whole.shape and _same(whole, halves):
            break
    else:
        raise InputError(
            f"module {layer!r} does not cut the network: information also passes around it"
        )

    def back(activations: Tensor) -> Tensor:
        return filled(activations, blanks or len(activations))

    return Split(layer, lambda images: both(images)[0], back, both, edited)


def deepest_map(
    run: Callable[[Tensor], Tensor], network: nn.Module, probe: Tensor, answers: int
) -> Split:
    """Cuts the network at its deepest feature map: the last output that still has positions.

    A map is (n, channels, height, width) with more than one position, or (n, tokens, channels) with
    more than one token; for a transformer that is the last norm. Where no map cuts the network, the
    deepest layer with more outputs than there are logits does (a hidden layer of a perceptron).
    The map comes ``rectified``.

    Args:
        run: images → logits; in eval mode while this function runs.
        network: the network.
        probe: two different images (2, c, h, w).
        answers: the number of logits.

    Raises:
        InputError: no layer cuts the network.
    """
    order: list[tuple[str, tuple[int, ...]]] = []
    handles = []
    try:
        for name, module in network.named_modules():
            if name:
                handles.append(module.register_forward_hook(_noting(order, name)))
        with torch.no_grad():
            run(probe)
    finally:
        for handle in handles:
            handle.remove()
    maps = [name for name, shape in order if _positions(shape) > 1]
    rows = [name for name, shape in order if len(shape) == 2 and shape[1] > answers]
    for name in (*reversed(maps), *reversed(rows)):
        try:
            split = split_at(run, network, name, probe)
            with torch.no_grad():
                return rectified(split, split.front(probe))
        except (InputError, *_FAILURES):
            continue  # a branch beside a shortcut, or a module that runs twice
    raise InputError(
        "no single layer cuts this network in two, neither a feature map nor a hidden layer; "
        "everything between images and logits runs beside something else"
    )


def rectified(split: Split, maps: Tensor) -> Split:
    """``split`` with negative entries of its maps set to 0, where the rest does not see them.

    Many networks apply their ReLU as a function, so that the deepest *module* is the norm before
    it. What is behind then ignores how negative an entry is, and distances between maps should.

    Args:
        split: a cut.
        maps: some of its maps (n, ...); with none below 0, or where it matters, ``split`` returns.
    """
    few = maps[:8]
    if not bool((maps < 0).any()):
        return split
    with torch.no_grad():
        same = _same(split.back(few), split.back(few.relu()))
    if not same:
        return split

    def both(images: Tensor) -> tuple[Tensor, Tensor]:
        found, logits = split.both(images)
        return found.relu(), logits

    return Split(
        split.layer,
        lambda images: split.front(images).relu(),
        split.back,
        both,
        lambda images, edit: split.edited(images, lambda maps: edit(maps.relu())),
    )


def _same(logits: Tensor, others: Tensor) -> bool:
    """Whether two rows of logits (n, C) differ by rounding only.

    They are compared with what tells images apart, which is very little in an untrained network.
    """
    spread = (logits - logits.mean(0)).abs().max()
    return bool((logits - others).abs().max() <= 1e-3 * spread + 1e-6 * logits.abs().max())


def _noting(order: list[tuple[str, tuple[int, ...]]], name: str) -> Callable[..., None]:
    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            order.append((name, tuple(output.shape)))

    return note


def _positions(shape: tuple[int, ...]) -> int:
    """Of a map (n, c, h, w) or of tokens (n, t, c); 0 for anything else."""
    if len(shape) == 4:
        return shape[2] * shape[3]
    return shape[1] if len(shape) == 3 else 0


@contextlib.contextmanager
def _hooked(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
