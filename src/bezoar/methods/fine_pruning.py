"""Fine-pruning: what is silent on clean images goes, and the rest is tuned.

Idea: units of the last convolutional layer that clean images hardly use may be there for the
trigger. With a_c the mean activation of channel c over clean images and positions, channels are
pruned in increasing a_c while the accuracy on held-out images allows it, and then all weights are
fine-tuned, the pruned channels staying at zero:

    a_c = mean |f_c(x)|;     prune the smallest a_c while CA >= (1 - tolerance) CA_0;     fine-tune

Paper: Liu, Dolan-Gavitt, Garg 2018, "Fine-Pruning: Defending Against Backdooring Attacks on Deep
Neural Networks", RAID, arXiv 1805.12185. Its text could not be reached; ``published()`` is the
port in BackdoorBench. What that port gets wrong is not followed: after the break it goes on with
the network that was pruned too far, it prunes one unit less than it says, and it draws the list
twice.

As in that port, the activations are the input of the final linear layer, and a channel is pruned
there: its columns of that layer's weight become zero, so any network has such channels. Where the
layer is fed by a flattened map, a channel owns the columns of all its positions (ours).

Ours: held-out images instead of test images for the tolerance, and fewer epochs. The record has the
accuracy of pruning alone; the effect on a backdoor is mostly the fine-tuning's.

Data: labelled clean images. Layers: any. Known failures: with BatchNorm, ReLU and average pooling
few channels are silent; in residual networks a channel also carries what the shortcut brings; an
attacker who knows the method uses channels that clean images use. A map that was permuted before it
is flattened is grouped wrongly.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.clean_choice import walk
from bezoar.methods.method import Method, Needs, Repair, methods
from bezoar.training import BatchHook, Progress, Recipe, fit, no_progress

_OTHERS = (0.0, 0.25, 0.5, 0.75, 0.9)  # shares of the channels that ``alternatives`` prune


@methods.register("fine-pruning")
class FinePruning(Method, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The least active channels pruned, and what is left fine-tuned.

    Attributes:
        tolerance: the share of the held-out accuracy that the pruning may cost, in [0, 1).
        step: the share of the channels that goes in one step, in (0, 1]; at least one goes.
        held_out: the share of the clean images, in (0, 1), that the pruning is judged by. The
            activations are of the others; the fine-tuning uses all.
        recipe: of the fine-tuning; None leaves the pruned network.
    """

    name: ClassVar[str] = "fine-pruning"
    title: ClassVar[str] = "Fine-pruning"
    paper: ClassVar[str] = "Liu et al. 2018, arXiv 1805.12185"
    needs: ClassVar[Needs] = "labelled images"
    layers: ClassVar[str] = "any, with a final linear layer"
    cost: ClassVar[str] = "20 epochs on the clean images"
    sweeps: ClassVar[bool] = True

    tolerance: float = 0.1
    step: float = 0.01
    held_out: float = 0.2
    recipe: Recipe | None = Recipe(epochs=20, batch_size=32, learning_rate=0.01, clip_norm=5.0)

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise InputError(f"tolerance is {self.tolerance}; expected a share in [0, 1)")
        if not 0 < self.step <= 1:
            raise InputError(f"step is {self.step}; expected a share of the channels in (0, 1]")
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out is {self.held_out}; expected a share between 0 and 1")

    @classmethod
    def published(cls) -> Self:
        """BackdoorBench's settings for CIFAR-10; its tolerance is read off test images.

        Here a fifth of the clean images stands in for them, and the momentum is Nesterov's.
        """
        return cls(
            tolerance=0.1,
            step=0.01,
            held_out=0.2,
            recipe=Recipe(
                epochs=100, batch_size=256, learning_rate=0.01, crop_padding=4, flip=True
            ),
        )

    def remove(
        self,
        classifier: Classifier,
        clean: ImageSet,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Repair:
        """Returns a pruned and fine-tuned copy.

        Raises:
            InputError: no labels, or one that the network has no class for, or too few images to
                hold some out.
        """
        clean.require_labels("fine-pruning")
        channel_of = head_channels(classifier.trace(clean.shape))
        clean.class_counts(classifier.num_classes)
        fitted, held_out = clean.split(1 - self.held_out, seed=seed)
        if not len(fitted) or not len(held_out):
            raise InputError(
                f"fine-pruning needs images to rank the channels and others to judge the pruning; "
                f"{len(clean)} are too few: give at least two of each class"
            )
        started = time.perf_counter()
        activity = mean_activity(classifier.survey(fitted)[1], channel_of)
        order = activity.argsort(stable=True)
        progress("fine-pruning: pruning", 0.0)
        judge = _HeadAccuracy(classifier, held_out)
        way = walk(
            (1 - self.tolerance) * judge(torch.zeros(0, dtype=torch.int64)),
            pruning_counts(len(order), self.step),
            lambda count: judge(columns_of(order[: int(count)], channel_of)),
        )
        count = int(way.setting)
        pruned = time.perf_counter()
        repaired, loss = self._made(
            classifier, clean, columns_of(order[:count], channel_of), seed, progress
        )

        def others() -> Iterator[tuple[str, Classifier]]:
            counts = {round(share * len(order)) for share in _OTHERS} - {count, len(order)}
            for other in sorted(counts):
                columns = columns_of(order[:other], channel_of)
                made, _ = self._made(classifier, clean, columns, seed, no_progress)
                yield f"{other} of {len(order)} channels", made

        done = time.perf_counter()
        progress("fine-pruning", 1.0)
        record: dict[str, Any] = {
            "channels": len(order),
            "columns_of_a_channel": len(channel_of) // len(order),
            "count": count,
            "pruned": order[:count].tolist(),
            "activity": activity.tolist(),
            "held_out": {
                "images": len(held_out),
                "before": way.accuracy[0],
                "after pruning": way.accuracy[way.tried.index(way.setting)],
                "floor": way.floor,
            },
            "loss": loss,
            "flags": [] if count else [_NOTHING],
            "curves": [
                {
                    "name": "held-out accuracy while pruning",
                    "x_name": "pruned channels",
                    "x": list(way.tried),
                    "y": list(way.accuracy),
                }
            ],
            "seconds": {
                "pruning": pruned - started,
                "tuning": done - pruned,
                "total": done - started,
            },
        }
        return Repair(repaired, record, alternatives=others)

    # -- inner works -----------------------------------------------------------------------------

    def _made(
        self,
        classifier: Classifier,
        clean: ImageSet,
        columns: Tensor,
        seed: int,
        progress: Progress,
    ) -> tuple[Classifier, list[float]]:
        """A copy without those columns of the head, fine-tuned; and the loss of each epoch."""
        copy = classifier.copy()
        hook = ColumnsStayZero(copy, columns)
        hook.after_backward()
        if self.recipe is None:
            return copy, []
        history = fit(
            copy,
            clean,
            self.recipe,
            seed=seed,
            hook=hook,
            progress=progress,
            what="fine-pruning: tuning",
        )
        return copy, history.loss


_NOTHING = (
    "Nothing was pruned: even the least active channel costs more than the held-out images allow. "
    "What was done is plain fine-tuning."
)


class ColumnsStayZero(BatchHook):
    """Sets columns of the final linear layer's weight to zero after each step.

    Args:
        classifier: in training.
        columns: their indices, of the features.
    """

    def __init__(self, classifier: Classifier, columns: Tensor) -> None:
        self.weight = classifier.network.get_parameter(classifier.head.name)
        self.columns = columns.to(self.weight.device)

    def after_backward(self) -> None:
        """Whatever momentum and weight decay did, nothing reaches the logits from there."""
        with torch.no_grad():
            self.weight[:, self.columns] = 0


# -- channels --------------------------------------------------------------------------------------


def head_channels(classifier: Classifier) -> Tensor:
    """The channel (d,), from 0, that each of the d features of a traced ``classifier`` belongs to.

    Features that come from a flattened map (n, c, h, w) belong to its c channels, h w to each; any
    others are channels of their own.
    """
    generator = torch.Generator().manual_seed(0)
    probe = torch.rand((2, *classifier.input_shape), generator=generator).to(classifier.device)
    flattening = _Flattening()
    with classifier.evaluating(), torch.no_grad(), flattening:
        features = classifier.features(probe)
    channels = features.shape[1]
    for count, rows in flattening.seen:
        if rows.shape == features.shape and (
            torch.equal(rows, features) or torch.equal(rows.relu(), features)
        ):
            channels = count
    return torch.arange(features.shape[1]) // (features.shape[1] // channels)


class _Flattening(TorchFunctionMode):
    """Notes every map (n, c, h, w) that becomes rows (n, c h w): the c and the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        given = args[0] if args else None
        if (
            isinstance(given, Tensor)
            and isinstance(output, Tensor)
            and (given.ndim, output.ndim) == (4, 2)
            and output.shape == (len(given), given[0].numel())
        ):
            self.seen.append((given.shape[1], output.clone()))
        return output


def mean_activity(features: Tensor, channel_of: Tensor) -> Tensor:
    """The mean a_c of |features| (n, d) over images and the columns of each channel; (c,)."""
    columns = features.detach().cpu().double().abs().mean(0)
    size = len(channel_of) // (int(channel_of[-1]) + 1)
    return columns.reshape(-1, size).mean(1)


def columns_of(channels: Tensor, channel_of: Tensor) -> Tensor:
    """All columns, in order, that belong to these channels."""
    return torch.nonzero(torch.isin(channel_of, channels)).flatten()


def pruning_counts(channels: int, step: float) -> list[int]:
    """How many channels go at each point: none at first, never all."""
    size = max(1.0, step * channels)
    counts = (round(point * size) for point in range(channels + 1))
    return sorted({count for count in counts if count < channels})


class _HeadAccuracy:
    """The accuracy on held-out images without some columns: from features, in no time."""

    def __init__(self, classifier: Classifier, held_out: ImageSet) -> None:
        self.weight, self.bias = classifier.head
        self.features = classifier.survey(held_out)[1]
        self.labels = held_out.require_labels("fine-pruning").to(self.features.device)

    def __call__(self, columns: Tensor) -> float:
        weight = self.weight.clone()
        weight[:, columns.to(weight.device)] = 0
        answers = (self.features @ weight.T + self.bias).argmax(1)
        return float((answers == self.labels).float().mean())
