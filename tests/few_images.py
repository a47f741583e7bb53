"""Image sets of the ten digits with few images."""

import torch


def first_of_each(images, count=1):
    """The first images of each class."""
    found = [torch.nonzero(images.labels == k).flatten()[:count] for k in range(10)]
    return images.subset(torch.cat(found))
