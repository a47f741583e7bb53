"""The measured figures that come with the package, such as nulls: JSON under ``bezoar/data``."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any


def packaged(path: str) -> dict[str, Any]:
    """The content of a JSON file of the package; ``path`` is relative to it, with slashes.

    >>> list(packaged("data/plane_waves_null.json"))
    ['version', 'log ratios']
    """
    text = resources.files("bezoar").joinpath(path).read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content
