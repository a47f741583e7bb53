"""Facts on each data set: what a network needs to know of its images, and where they are kept.

Means and standard deviations are those of the pixels in [0, 1], rounded to four places and computed
from the images named beside them. Where a paper has no number the choice is marked "(ours)".
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from bezoar.registry import Registry

Split = Literal["train", "test"]


class DataSet(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a set of images.

    Attributes:
        name: the name users give; for their own images the path.
        title: the full name.
        classes: how many there are; 0 where the images have no labels.
        shape: channels, height and width.
        mean: of the training pixels in [0, 1], one for each channel.
        std: their standard deviation.
        flip: whether an image keeps its meaning when it is flipped from left to right.
        crop_padding: pixels of random shift that suit training; 0 does not shift.
        citation: whom to cite, and what is known of the licence.
        files: the parquet files of each split, as a pattern in the folder ``BEZOAR_DATA``.
        divides: the test files alone serve for both splits, divided, if there are no others.
        hub: the name on the Hugging Face hub; empty where it has none that we know.
        hub_splits: our split → the name there.
        vision: the class in ``torchvision.datasets``; empty where there is none.
        vision_splits: our split → the arguments of that class.
    """

    name: str
    title: str
    classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    crop_padding: int
    citation: str = ""
    files: dict[str, str] = {}
    divides: bool = False
    hub: str = ""
    hub_splits: dict[str, str] = {}
    vision: str = ""
    vision_splits: dict[str, dict[str, Any]] = {}


datasets: Registry[DataSet] = Registry("dataset")


def _enter(entry: DataSet) -> None:
    datasets.register(entry.name)(entry)


_enter(
    DataSet(
        name="cifar10",
        title="CIFAR-10",
        classes=10,
        shape=(3, 32, 32),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        flip=True,
        crop_padding=4,  # with the flip: He et al. 2016 (arXiv 1512.03385), section 4.2
        citation=(
            "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. No "
            "licence is stated; the authors ask to be cited."
        ),
        files={"train": "cifar10/train-*.parquet", "test": "cifar10/test*.parquet"},
        hub="uoft-cs/cifar10",
        hub_splits={"train": "train", "test": "test"},
        vision="CIFAR10",
        vision_splits={"train": {"train": True}, "test": {"train": False}},
    )
)

_enter(
    DataSet(
        name="gtsrb",
        title="German Traffic Sign Recognition Benchmark",
        classes=43,
        shape=(3, 32, 32),
        # Whole images, every second frame of the 39,209; cut to the sign the mean is 0.3555,
        # 0.3156, 0.3323 and the deviation 0.2699, 0.2532, 0.2623.
        mean=(0.3396, 0.3115, 0.3206),
        std=(0.2751, 0.2640, 0.2705),
        flip=False,  # keep right, keep left
        crop_padding=4,  # (ours) as for CIFAR-10
        citation=(
            "J. Stallkamp et al., Man vs. computer: Benchmarking machine learning algorithms for "
            "traffic sign recognition, Neural Networks 32, 2012. We know of no formal licence; the "
            "authors ask to be cited."
        ),
        files={"train": "gtsrb/train*.parquet", "test": "gtsrb/test*.parquet"},
        hub="tanganke/gtsrb",
        hub_splits={"train": "train", "test": "test"},
        vision="GTSRB",
        vision_splits={"train": {"split": "train"}, "test": {"split": "test"}},
    )
)

_enter(
    DataSet(
        name="tiny-imagenet",
        title="Tiny ImageNet",
        classes=200,
        shape=(3, 64, 64),
        mean=(0.4824, 0.4495, 0.3981),  # of the 10,000 validation images
        std=(0.2765, 0.2691, 0.2824),
        flip=True,
        crop_padding=8,  # (ours) an eighth of the side, as for CIFAR-10
        citation=(
            "Stanford CS231n, Tiny ImageNet; images of ImageNet (O. Russakovsky et al., "
            "arXiv 1409.0575), for non-commercial research and education."
        ),
        files={"train": "tinyimagenet/train*.parquet", "test": "tinyimagenet/val*.parquet"},
        divides=True,
        hub="zh-plus/tiny-imagenet",
        hub_splits={"train": "train", "test": "valid"},  # the labels of its test part are secret
    )
)

_enter(
    DataSet(
        name="digits",
        title="Optical Recognition of Handwritten Digits",
        classes=10,
        shape=(1, 8, 8),
        mean=(0.3053,),  # of all 1,797
        std=(0.3759,),
        flip=False,
        crop_padding=0,  # (ours) the strokes reach the edge of the 8x8 pixels
        citation=(
            "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine "
            "Learning Repository, 1998, doi 10.24432/C50P49; CC BY 4.0."
        ),
    )
)
