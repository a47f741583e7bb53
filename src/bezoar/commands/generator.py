"""``bezoar generator``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from bezoar.commands.exit_codes import OK
from bezoar.commands.options import Common
from bezoar.commands.outputs import check_outputs, command_line, write_record
from bezoar.errors import InputError
from bezoar.screen import print_facts, progress_bar

if TYPE_CHECKING:
    from torch import nn

    from bezoar.generators import AdversarialTraining, Autoencoding, PublicGenerator
    from bezoar.images import ImageSet
    from bezoar.training import Progress


@dataclass(frozen=True, kw_only=True)
class GeneratorTrain(Common):
    """Train a generator on public images: images of anything but the task.

    Methods that need public images search among what it makes for samples of a model's classes. No
    model takes part, so that the generator cannot learn a backdoor from one. A training that was
    interrupted goes on when the same command is given again.

    Exit code 0: done. 2: input not usable.

    Attributes:
        images: a folder with one sub-folder per class, a flat folder, a parquet file or an .npz;
            thousands of images are better than hundreds. Their labels play no part.
        out: where the description goes, a .toml; weights (.safetensors) and a sheet of samples
            (.png) go beside it.
        size: height and width of the images that the generator makes; those of the models.
        channels: 1 or 3; by default 1 if all images are greyscale.
        resize: crop and stretch make images fit the size; none refuses those of another size.
        limit: draw at most so many of the images; by default all.
        kind: gan, gan-gp (the published settings, several times slower), or autoencoder (the
            quickest, and blurred).
        steps: how long it learns; by default 5000 for gan, 3000 for autoencoder, and for gan-gp
            100 passes over the images.
        width: channels of the networks; by default 48, 64 for gan-gp and 32 for autoencoder.
        latent: length of a latent vector.
        flip: do not mirror images at random, which is wrong for digits and signs; gan-gp never
            does.
    """

    images: str
    out: Path
    size: tuple[int, int] = (32, 32)
    channels: Literal[1, 3] | None = None
    resize: Literal["none", "stretch", "crop"] = "crop"
    limit: int | None = None
    kind: Literal["gan", "gan-gp", "autoencoder"] = "gan"
    steps: int | None = None
    width: int | None = None
    latent: int = 100
    # the help shows --no-flip, of which "(default: True)" would say the opposite
    flip: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = True

    def run(self) -> int:
        """Trains it and writes the files."""
        from bezoar.device import resolve_device
        from bezoar.generators import write_generator
        from bezoar.generators.generator_files import check_description_path, weights_beside
        from bezoar.generators.sample_sheet import sample_sheet
        from bezoar.networks.image_generators import plan
        from bezoar.records import write_bytes

        check_description_path(self.out)
        sheet = self.out.with_suffix(".png")
        outputs = (self.out, weights_beside(self.out), sheet, self.json)
        check_outputs(*outputs, inputs=(self.images,))
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit is {self.limit}; expected at least 1")
        settings, device = self._settings(), resolve_device(self.device)
        for side in self.size:
            plan(side)
        unfinished = self.out.with_name(f".{self.out.name}.checkpoint")
        with progress_bar(self.silent) as progress:
            images = self._open(progress)
            generator = _train(
                settings,
                images,
                seed=self.seed,
                device=device,
                progress=progress,
                resume=unfinished,
            )
        origin = {**generator.origin, "command": command_line()}
        origin["images"] = {**origin["images"], "source": self.images}
        generator = dataclasses.replace(generator, origin=origin)
        write_generator(generator, self.out)
        unfinished.unlink(missing_ok=True)
        write_bytes(sheet, sample_sheet(generator, seed=self.seed))
        record = _record(generator, self.out, sheet) | {"notices": list(images.notices)}
        if not self.silent:
            print_facts(_shown(record))
        write_record(self.json, record)
        return OK

    def _settings(self) -> AdversarialTraining | Autoencoding:
        import msgspec

        from bezoar.generators import AdversarialTraining, Autoencoding

        names = ("steps", "width", "latent")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.kind == "autoencoder":
            return Autoencoding(**given, flip=self.flip)
        if self.kind == "gan":
            return AdversarialTraining(**given, flip=self.flip)
        if self.steps is not None:
            given["epochs"] = None
        return msgspec.structs.replace(AdversarialTraining.published(), **given)

    def _open(self, progress: Progress) -> ImageSet:
        from bezoar.images import ImageSet

        images = ImageSet.open(
            self.images,
            channels=self.channels,
            size=self.size,
            resize=self.resize,
            progress=lambda done, total: progress("reading images", done / max(total, 1)),
        )
        if self.limit is not None and self.limit < len(images):
            images = images.sample(self.limit, seed=self.seed)
        return images


@dataclass(frozen=True, kw_only=True)
class GeneratorShow(Common):
    """What a generator is, whether its images can hold a backdoor, and a sheet of samples.

    Exit code 0: done. 2: input not usable.

    Attributes:
        file: its description, a .toml.
        sheet: where the sheet of samples goes, a .png; by default beside the description.
    """

    file: tyro.conf.Positional[Path]
    sheet: Path | None = None

    def run(self) -> int:
        """Prints the facts and writes the sheet."""
        from bezoar.device import resolve_device
        from bezoar.generators import load_generator
        from bezoar.generators.sample_sheet import sample_sheet
        from bezoar.records import write_bytes

        sheet = self.sheet or self.file.with_suffix(".png")
        check_outputs(sheet, self.json, inputs=(self.file,))
        generator = load_generator(self.file, device=resolve_device(self.device))
        check_outputs(sheet, self.json, inputs=(generator.origin["file"]["weights"],))
        write_bytes(sheet, sample_sheet(generator, seed=self.seed))
        record = _record(generator, self.file, sheet)
        if not self.silent:
            print_facts(_shown(record))
        write_record(self.json, record)
        return OK


def _train(
    settings: AdversarialTraining | Autoencoding, images: ImageSet, **options: Any
) -> PublicGenerator:
    from bezoar.generators import AdversarialTraining, train_autoencoder, train_generator

    if isinstance(settings, AdversarialTraining):
        return train_generator(images, None, settings, **options)
    return train_autoencoder(images, None, settings, **options)


def _record(generator: PublicGenerator, description: Path, sheet: Path) -> dict[str, Any]:
    def parameters(network: nn.Module | None) -> int | None:
        return None if network is None else sum(p.numel() for p in network.parameters())

    return {
        "kind": "generator",
        "shape": list(generator.shape),
        "latent": generator.latent,
        "parameters": parameters(generator.network),
        "critic_parameters": parameters(generator.critic),
        "apart": generator.apart,
        "independence": generator.independence,
        "origin": dict(generator.origin),
        "description": str(description),
        "sheet": str(sheet),
    }


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    """The facts for the screen: of the curves, only their ends."""
    origin = record["origin"]
    facts = {name: value for name, value in record.items() if name not in ("origin", "apart")}
    facts["shape"] = "x".join(map(str, record["shape"]))
    for name in ("kind", "seed", "steps"):
        facts["made by" if name == "kind" else name] = origin.get(name)
    if "images" in origin:
        facts["public images"] = {k: v for k, v in origin["images"].items() if k != "shape"}
    losses = origin.get("losses", {})
    facts["losses"] = {name: f"{curve[0]:.3g} to {curve[-1]:.3g}" for name, curve in losses.items()}
    if "seconds" in origin:
        facts["seconds"] = round(origin["seconds"], 1)
    return facts
