"""Methods as text: ``NAME`` or ``NAME:key=value,…``, for grids, tables and the command line.

``NAME:published`` starts from the paper's settings. A key with dots reaches into a nested table
(``rnp:tuning.recipe.epochs=3``), ``none`` switches off what may be off, and several values of one
key are joined with ``+``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from bezoar.errors import InputError
from bezoar.methods.method import Method, methods

PUBLISHED = "published"


def parse_method(text: str) -> Method:
    """Reads a method from text.

    >>> from bezoar import methods
    >>> parse_method("ft:recipe.epochs=3").recipe.epochs
    3

    Raises:
        InputError: there is no such method or setting, or a value does not fit.
    """
    name, _, rest = text.partition(":")
    parts = [part.strip() for part in rest.split(",") if part.strip()]
    published = PUBLISHED in parts
    pairs = [part for part in parts if part != PUBLISHED]
    return make_method(name.strip(), pairs, published=published, what=f"method {text!r}")


def make_method(
    name: str,
    settings: Sequence[str] = (),
    *,
    published: bool = False,
    what: str = "--set",
    separator: str = "+",
) -> Method:
    """The method called ``name`` with settings given as text.

    Args:
        name: of the method.
        settings: ``key=value`` pairs.
        published: start from the paper's settings.
        what: where the settings come from, for messages.
        separator: between several values of one key.

    Raises:
        InputError: there is no such method or setting, or a value does not fit.
    """
    kind = methods.get(name)
    method = kind.published() if published else kind()
    values = method.configuration()
    for setting in settings:
        key, equals, text = setting.partition("=")
        place = values
        *path, last = key.strip().split(".")
        for part in path:
            place = place.get(part, {}) if isinstance(place, dict) else {}
        if not equals or not isinstance(place, dict) or last not in place:
            known = ", ".join(key for key, _ in flat(values))
            raise InputError(f"{what} {setting}: expected name=value with one of {known}")
        text = text.strip()
        if isinstance(place[last], tuple | list):
            place[last] = text.split(separator) if text else []
        elif place[last] is None and separator in text:
            place[last] = text.split(separator)  # one or several: ``target_class=4+17``
        else:
            place[last] = None if text.lower() == "none" else text
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise InputError(f"{what} {' '.join(settings)}: {error}") from None


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names with dots, and values, of a configuration with tables in it."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
