"""A layer that asks for the version it was saved in, as torchvision's MNASNet does."""

from torch import nn


class VersionedLinear(nn.Linear):
    """Weights of an older version, or of none, are refused."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *others):
        if metadata.get("version") != 2:
            raise ValueError(f"version is {metadata.get('version')}")
        super()._load_from_state_dict(state, prefix, metadata, *others)
