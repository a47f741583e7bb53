"""Labels and class names as sources give them, to class indices."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np

from bezoar.errors import InputError


def indices_of(names: Sequence[str], classes: Sequence[str], what: str) -> list[int]:
    """The index in ``classes`` of every name.

    Args:
        names: names as the source has them.
        classes: names in order of their index.
        what: what a name is, for messages: "folder", "class".

    Raises:
        InputError: a name is not among the classes, or stands for two of them.
    """
    indices = []
    for name in names:
        if classes.count(name) > 1:
            raise InputError(
                f"the class name {name!r} occurs {classes.count(name)} times among the class "
                f"names, so the {what} {name!r} has no one index; make the names different"
            )
        if name not in classes:
            by_small_letters = {entry.casefold(): entry for entry in classes}
            close = difflib.get_close_matches(name.casefold(), by_small_letters, n=1)
            if close:
                hint = f"perhaps you meant {by_small_letters[close[0]]!r}"
            else:
                shown = ", ".join(repr(entry) for entry in classes[:5])
                hint = f"they are {shown}{', …' if len(classes) > 5 else ''}"
            raise InputError(
                f"the {what} {name!r} is none of the {len(classes)} class names; {hint}; rename "
                f"the {what} or correct the class names"
            )
        indices.append(classes.index(name))
    return indices


def _is_index(name: str) -> bool:
    """Whether a name is a whole number as one writes it, without leading zeros."""
    return name.isascii() and name.isdecimal() and name == str(int(name)) and len(name) < 10


def settle_labels(
    values: np.ndarray,
    source: str,
    own_classes: tuple[str, ...] | None,
    classes: tuple[str, ...] | None,
) -> tuple[np.ndarray | None, tuple[str, ...] | None, tuple[str, ...]]:
    """Turns a column of labels into class indices.

    Args:
        values: shape (n,): whole numbers (-1 or NaN is "no label"), or names as objects (None is
            "no label"). Names that are all whole numbers count as these where no class names are
            given.
        source: what to call the source in messages.
        own_classes: class names that the source gives for its numbers.
        classes: class names whose positions the result must use, or None.

    Returns:
        ``int64`` labels of shape (n,) or None, the class names or None, and notices.

    Raises:
        InputError: the labels are not whole numbers or known names.
    """
    if values.dtype.kind in "OU":
        missing = np.array([value is None for value in values], bool)
        strange = next((value for value in values[~missing] if not isinstance(value, str)), None)
        if strange is not None:
            raise InputError(
                f"{source} has the label {strange!r} beside names; expected class indices (whole "
                "numbers from 0 on) or class names, not both"
            )
        given = {str(value) for value in values[~missing]}
        if given and classes is None and all(_is_index(name) for name in given):
            own_classes = None  # "10" means class 10; sorted as text it would come before "2"
            numbers = np.array([-1 if value is None else int(value) for value in values])
        else:
            own_classes = tuple(sorted(given)) or None
            position = {name: index for index, name in enumerate(own_classes or ())}
            numbers = np.array([-1 if value is None else position[str(value)] for value in values])
    elif values.dtype.kind in "iuf":
        known = np.where(np.isnan(values), -1, values) if values.dtype.kind == "f" else values
        if not np.array_equal(known, np.floor(known)):
            raise InputError(
                f"the labels of {source} are not whole numbers; expected class indices from 0 on"
            )
        numbers = known.astype(np.int64)
        missing = numbers == -1
    else:
        raise InputError(
            f"the labels of {source} have type {values.dtype}; expected class indices (whole "
            "numbers from 0 on) or class names"
        )
    if missing.any():
        notice = f"{int(missing.sum())} of {len(values)} images in {source} have no label"
        if not missing.all():
            notice += ", so all count as unlabelled"
        return None, classes or own_classes, (notice + ".",)
    if numbers.min() < 0:
        raise InputError(
            f"{source} has the label {int(numbers.min())}; expected class indices from 0 on (-1 "
            "means no label)"
        )
    names = own_classes or classes
    if names is not None and numbers.max() >= len(names):
        raise InputError(
            f"{source} has the label {int(numbers.max())}, and there are {len(names)} class names, "
            f"for labels 0 to {len(names) - 1}; correct the labels or the class names"
        )
    if own_classes and classes:
        present = np.unique(numbers)
        table = np.full(len(own_classes), -1, np.int64)
        table[present] = indices_of([own_classes[index] for index in present], classes, "class")
        numbers = table[numbers]
    return numbers, classes or own_classes, ()
