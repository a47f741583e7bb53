"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every command.

    Attributes:
        json: write the full record as JSON to this file; - is standard output.
        seed: where the random draws start; the same seed gives the same result.
        device: where to compute, such as cpu or cuda; by default the accelerator if there is one.
        quiet: no progress and no summary.
    """

    json: str | None = None
    seed: int = 0
    device: str | None = None
    quiet: bool = False

    @property
    def silent(self) -> bool:
        """Whether the screen is left alone, because nobody wants it or JSON goes there."""
        return self.quiet or self.json == "-"


@dataclass(frozen=True, kw_only=True)
class Model:
    """Facts about a bare weights file; a model.toml holds them already.

    Attributes:
        architecture: timm:NAME, torchvision:NAME, bezoar:NAME or path/to/file.py:function.
        mean: subtracted from images in [0, 1], for each channel; 0 if the network takes them as
            they are.
        std: then divided by; 1 if the network takes them as they are.
        input_size: height and width of the images; one number for squares.
        classes: names of the classes in the order of the logits.
    """

    architecture: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    input_size: int | tuple[int, int] | None = None
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How images are read.

    Attributes:
        resize: none refuses images of another size; stretch and crop make them fit.
        limit: draw at most so many images; each class keeps its share, and at least one image. By
            default all.
    """

    resize: Literal["none", "stretch", "crop"] = "none"
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class OneModel(Common, Model):
    """A command about one model.

    Attributes:
        model: a model.toml, or a weights file with the facts as options.
    """

    model: tyro.conf.Positional[Path]


@dataclass(frozen=True, kw_only=True)
class ModelOnImages(OneModel, Reading):
    """A command that runs a model on images.

    Attributes:
        images: a folder with one sub-folder per class, a flat folder, a parquet file or an .npz.
    """

    images: str


@dataclass(frozen=True, kw_only=True)
class ModelMaybeOnImages(OneModel, Reading):
    """A command that can do without images.

    Attributes:
        images: a folder with one sub-folder per class, a flat folder, a parquet file or an .npz;
            without any the weights alone are looked at, and only what needs no image of the task
            repairs.
    """

    images: str | None = None


@dataclass(frozen=True, kw_only=True)
class ManyModels:
    """A command that can do its work for many models.

    Attributes:
        manifest: a CSV in the place of the model, with a column model and, where they are needed,
            images, architecture, mean, std, input_size and classes; one row for each model.
        out: with a manifest, a folder for one record of each model; what is there is kept.
        executor: with a manifest, where models are scanned. local (by default) or local:N for N
            processes at a time, ray, ray:ADDRESS, or here for this process.
        threads: with a manifest, of each model, on Ray also a fraction of a core; 1 by default.
        gpus: with a manifest, share of a GPU for each model; by default each sees what is there.
        timeout: with a manifest, seconds after which a model is given up; 3600 by default.
        memory_limit: with a manifest, GiB of memory that a model may take; on this machine by
            default half of what there is.
        summary: with a manifest, write the table to this file, as CSV.
    """

    manifest: Path | None = None
    out: Path | None = None
    executor: str | None = None
    threads: float | None = None
    gpus: float | None = None
    timeout: float | None = None
    memory_limit: float | None = None
    summary: Path | None = None


@dataclass(frozen=True, kw_only=True)
class PublicImages(Common):
    """What a command may take in the place of images of the task.

    Attributes:
        public: images of anything but the task, in the same forms as --images; for a method that
            needs public images. It sees no labels of them.
        generator: a generator that was trained on such images, so that none is trained; a .toml.
        public_resize: crop and stretch make public images fit the model; none refuses those of
            another size.
        public_limit: draw at most so many of the public images; each class, if they have any, keeps
            its share, and at least one image. By default all.
    """

    public: str | None = None
    generator: Path | None = None
    public_resize: Literal["none", "stretch", "crop"] = "crop"
    public_limit: int | None = None

    @property
    def public_source(self) -> str | None:
        """What was given; None where nothing was."""
        given = [str(one) for one in (self.generator, self.public) if one is not None]
        return " and ".join(given) or None
