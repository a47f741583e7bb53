"""Reading what the user named: models and images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from bezoar.commands.options import Model, ModelMaybeOnImages, ModelOnImages, OneModel
from bezoar.commands.outputs import check_outputs
from bezoar.errors import InputError
from bezoar.screen import progress_bar

if TYPE_CHECKING:
    from bezoar.images import ImageSet
    from bezoar.intake import LoadedModel


def given_facts(model: Model) -> dict[str, Any]:
    """The facts of a model as ``load_model`` takes them; None is "not given" to it."""
    names = ("architecture", "mean", "std", "input_size", "classes")
    return {name: getattr(model, name) for name in names}


@overload
def load(
    command: ModelOnImages, *, outputs: tuple[Path | str | None, ...]
) -> tuple[LoadedModel, ImageSet]: ...


@overload
def load(
    command: ModelMaybeOnImages, *, outputs: tuple[Path | str | None, ...]
) -> tuple[LoadedModel, ImageSet | None]: ...


def load(
    command: ModelOnImages | ModelMaybeOnImages, *, outputs: tuple[Path | str | None, ...]
) -> tuple[LoadedModel, ImageSet | None]:
    """The model and the images of a command, after a look at where its outputs shall go."""
    if command.limit is not None and command.limit < 1:
        raise InputError(f"--limit is {command.limit}; expected at least 1")
    given = () if command.images is None else (command.images,)
    loaded = load_model(command, outputs=outputs, inputs=given)
    if command.images is None:
        return loaded, None
    images = open_images(command, command.images, loaded, classes=loaded.description.classes)
    if command.limit is not None and command.limit < len(images):
        images = images.sample(command.limit, seed=command.seed)
    return loaded, images


def load_model(
    command: OneModel,
    *,
    outputs: tuple[Path | str | None, ...],
    inputs: tuple[Path | str, ...] = (),
) -> LoadedModel:
    """The model of a command, after a look at where its outputs shall go.

    Args:
        command: with the model and the facts about it.
        outputs: neither the model, its weights nor ``inputs`` may be among them.
        inputs: what else the command reads.
    """
    from bezoar import intake
    from bezoar.device import resolve_device

    check_outputs(*outputs, inputs=(command.model, *inputs))
    device = resolve_device(command.device)
    loaded = intake.load_model(command.model, device=device, **given_facts(command))
    check_outputs(*outputs, inputs=(loaded.weights.path,))
    return loaded


def open_images(
    command: ModelOnImages | ModelMaybeOnImages,
    source: str,
    loaded: LoadedModel,
    *,
    classes: tuple[str, ...] | None,
) -> ImageSet:
    """The images at ``source`` as the model takes them."""
    from bezoar.images import ImageSet

    with progress_bar(command.silent) as progress:
        return ImageSet.open(
            source,
            channels=loaded.description.channels,
            size=loaded.classifier.input_size,
            resize=command.resize,
            classes=classes,
            progress=lambda done, total: progress("reading images", done / max(total, 1)),
        )
