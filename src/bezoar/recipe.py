"""How a network is trained, and what happened when it was."""

from __future__ import annotations

from typing import Literal

import msgspec

from bezoar.errors import InputError


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to train.

    Attributes:
        epochs: passes over the images.
        batch_size: images in a step.
        learning_rate: the highest one.
        schedule: ``cosine`` falls from it to 0; ``one-cycle`` rises for a fifth, then falls
            linearly to 0; ``constant`` stays.
        momentum: of SGD (Nesterov).
        weight_decay: on all parameters.
        label_smoothing: of the ordinary loss; a loss of one's own does without it.
        clip_norm: largest gradient norm; 0 does not clip.
        crop_padding: pixels of random shift; 0 does not shift.
        border: what comes in at the edges of a shift, zeros or the image's mirror image.
        flip: random horizontal flips; wrong for digits and signs.
        batch_norm: ``train`` normalises with each batch, ``eval`` keeps the running statistics.
        ema: share of the old value in the moving average of weights and statistics that replaces
            them after the last epoch; 0 keeps the last weights.
        bfloat16: multiply in ``bfloat16`` where the processor does that faster.
        compile: let torch compile the network first; it costs up to a minute.
    """

    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 0.01
    schedule: Literal["cosine", "one-cycle", "constant"] = "cosine"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    crop_padding: int = 0
    border: Literal["zeros", "reflect"] = "zeros"
    flip: bool = False
    batch_norm: Literal["train", "eval"] = "train"
    ema: float = 0.0
    bfloat16: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("learning_rate", "momentum", "weight_decay", "clip_norm", "crop_padding"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more, below 1")


class History(msgspec.Struct, kw_only=True):
    """What happened: one value for each epoch, and the seconds of training alone."""

    loss: list[float] = []
    accuracy: list[float] = []
    seconds: float = 0.0
