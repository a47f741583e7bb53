"""Reading what the user named: models and images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from bezoar.commands.options import (
    Model,
    ModelMaybeOnImages,
    ModelOnImages,
    OneModel,
    PublicImages,
)
from bezoar.commands.outputs import check_outputs
from bezoar.errors import InputError
from bezoar.screen import progress_bar

if TYPE_CHECKING:
    import torch

    from bezoar.generators.public_generator import PublicGenerator
    from bezoar.images import ImageSet
    from bezoar.intake import LoadedModel


def given_facts(model: Model) -> dict[str, Any]:
    """The facts of a model as ``load_model`` takes them; None is "not given" to it."""
    names = ("architecture", "mean", "std", "input_size", "classes")
    return {name: getattr(model, name) for name in names}


@overload
def load(
    command: ModelOnImages,
    *,
    outputs: tuple[Path | str | None, ...],
    inputs: tuple[Path | str, ...] = (),
) -> tuple[LoadedModel, ImageSet]: ...


@overload
def load(
    command: ModelMaybeOnImages,
    *,
    outputs: tuple[Path | str | None, ...],
    inputs: tuple[Path | str, ...] = (),
) -> tuple[LoadedModel, ImageSet | None]: ...


def load(
    command: ModelOnImages | ModelMaybeOnImages,
    *,
    outputs: tuple[Path | str | None, ...],
    inputs: tuple[Path | str, ...] = (),
) -> tuple[LoadedModel, ImageSet | None]:
    """The model and the images of a command, after a look at where its outputs shall go.

    Args:
        command: with the model and the images.
        outputs: neither the model, its weights, the images nor ``inputs`` may be among them.
        inputs: what else the command reads.
    """
    if command.limit is not None and command.limit < 1:
        raise InputError(f"--limit is {command.limit}; expected at least 1")
    given = inputs if command.images is None else (command.images, *inputs)
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


def check_public_options(command: PublicImages) -> None:
    """Refuses options that cannot be meant."""
    if command.public_limit is not None and command.public_limit < 1:
        raise InputError(f"--public-limit is {command.public_limit}; expected at least 1")


def open_public(
    command: PublicImages,
    *,
    shape: tuple[int, int, int],
    device: torch.device,
    outputs: tuple[Path | str | None, ...],
) -> ImageSet | PublicGenerator | None:
    """What the user has in the place of images of the task.

    Args:
        command: names it.
        shape: channels, height and width that the model takes.
        device: where a generator goes.
        outputs: the weights of a generator may not be among them.
    """
    from bezoar.generators.generator_files import load_generator

    images = None if command.public is None else _public_images(command, command.public, shape)
    if command.generator is None:
        return images
    generator = load_generator(command.generator, device=device)
    check_outputs(*outputs, inputs=(generator.origin["file"]["weights"],))
    return replace(generator, images=images)


def _public_images(command: PublicImages, source: str, shape: tuple[int, int, int]) -> ImageSet:
    from bezoar.images import ImageSet

    try:
        with progress_bar(command.silent) as progress:
            public = ImageSet.open(
                source,
                channels=shape[0],
                size=shape[1:],
                resize=command.public_resize,
                progress=lambda done, total: progress("reading images", done / max(total, 1)),
            )
    except InputError as error:  # the reader knows only the option of other images
        raise InputError(str(error).replace("--resize", "--public-resize")) from error
    if command.public_limit is not None and command.public_limit < len(public):
        public = public.sample(command.public_limit, seed=command.seed)
    return public
