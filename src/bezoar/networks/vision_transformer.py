"""timm's vision transformer for small images (Dosovitskiy et al. 2021, arXiv:2010.11929).

An image is cut into patches; each becomes a token, a class token joins them, and the head reads the
class token after the last block. Width 192, 3 heads and depth 12 are those of DeiT-Ti (Touvron et
al. 2021, arXiv:2012.12877); patches of 4 pixels, which make 64 tokens of a 32x32 image, are ours.

Names in the state dict and initial weights are timm's. Known limits: it takes one input size only,
and learns slowly from small sets: without a pretraining it stays behind a convolutional network
of the same cost. ``width=96, depth=6`` is a size for CPUs (0.7 M parameters).
"""

from __future__ import annotations

from torch import nn

from bezoar.errors import InputError
from bezoar.networks import networks
from bezoar.networks.vision import import_timm


@networks.register("vit-tiny")
def vit_tiny(
    num_classes: int = 10,
    channels: int = 3,
    input_size: int = 32,
    patch_size: int = 4,
    width: int = 192,
    depth: int = 12,
    heads: int = 3,
) -> nn.Module:
    """The small vision transformer (5.4 M parameters).

    Args:
        num_classes: logits.
        channels: channels of the images.
        input_size: height and width of the images, in pixels; a multiple of ``patch_size``.
        patch_size: height and width of a patch, in pixels.
        width: numbers in a token; a multiple of ``heads``.
        depth: transformer blocks.
        heads: attention heads of a block.

    Raises:
        InputError: a size is no multiple of the other, or timm is not installed.
    """
    if input_size % patch_size:
        raise InputError(
            f"input_size is {input_size} and patch_size {patch_size}; give an input_size that is a "
            "multiple of patch_size"
        )
    if width % heads:
        raise InputError(
            f"width is {width} and heads {heads}; give a width that is a multiple of heads"
        )
    return import_timm().models.VisionTransformer(  # type: ignore[no-any-return]  # untyped
        img_size=input_size,
        patch_size=patch_size,
        in_chans=channels,
        num_classes=num_classes,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
    )
