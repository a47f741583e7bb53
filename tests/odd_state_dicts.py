"""Layers whose state dicts do not load as plain ones do."""

from torch import nn


class VersionedLinear(nn.Linear):
    """Weights of an older version, or of none, are refused, as by torchvision's MNASNet."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *others):
        if metadata.get("version") != 2:
            raise ValueError(f"version is {metadata.get('version')}")
        super()._load_from_state_dict(state, prefix, metadata, *others)


class OtherNames(nn.Linear):
    """What it saves it does not load."""

    def state_dict(self, *_arguments, **_options):
        return {"w": self.weight.detach().clone()}
