"""How numbers are written on the page: one way for each kind of quantity.

A number that is missing, NaN or infinite is a dash.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime

from bezoar.report import fields

DASH = "\u2013"
TIMES = "\u00d7"
MINUS = "\u2212"
SPACE = "\u00a0"  # keeps a number and its unit on one line
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def percent(share: float | None) -> str:
    """A share in [0, 1] as a percentage with one decimal: ``84.8 %``."""
    return DASH if share is None else f"{_signed(100 * share, 1)}{SPACE}%"


def in_percent(share: float | None) -> str:
    """A share in per cent without the sign, for columns whose head says so: ``84.8``."""
    return DASH if share is None else _signed(100 * share, 1)


def span(low: float | None, high: float | None) -> str:
    """The ends of an interval for such a column: ``−0.4 to 1.2``, or nothing without both."""
    if low is None or high is None:
        return ""
    return f"{in_percent(low)}{SPACE}to{SPACE}{in_percent(high)}"


def points(share: float | None) -> str:
    """A difference of two shares in percentage points: ``1.2 points``."""
    return DASH if share is None else f"{_signed(100 * share, 1)}{SPACE}points"


def interval(low: float | None, high: float | None) -> str:
    """The ends of an interval of shares: ``80.0`` to ``88.0 %``, or nothing without both."""
    if low is None or high is None:
        return ""
    return f"{_signed(100 * low, 1)}{DASH}{percent(high)}"


def p_value(value: float | None) -> str:
    """A p-value: ``0.013``, ``0.42``, ``< 0.0001``."""
    if value is None:
        return DASH
    if value < 0.0001:
        return f"<{SPACE}0.0001"
    if value >= 1:
        return "1"
    return f"{value:.{2 if value >= 0.1 else 3 if value >= 0.001 else 4}f}"


def seconds(value: float | None) -> str:
    """A duration with the digits that matter: ``12 ms``, ``2.3 s``, ``48 s``, ``3 min 20 s``."""
    if value is None or value < 0:
        return DASH
    if value < 0.0995:
        return f"{1000 * value:.{0 if value >= 0.00095 else 1}f}{SPACE}ms"
    if value < 9.95:
        return f"{value:.{2 if value < 0.995 else 1}f}{SPACE}s"
    if value < 119.5:
        return f"{value:.0f}{SPACE}s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min{SPACE}{rest}{SPACE}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}{SPACE}h{SPACE}{minutes:02}{SPACE}min"


def count(value: float | None) -> str:
    """A whole number with separators: ``175,066``."""
    return DASH if value is None else f"{round(value):,}"


def plural(value: int, one: str, many: str = "") -> str:
    """A number with its noun: ``1 class``, ``10 classes``."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def measure(value: float | None, decimals: int | None = None) -> str:
    """Any other number: three significant digits, or the given decimals for a column."""
    if value is None:
        return DASH
    size = abs(value)
    if value == 0:
        return "0" if decimals is None else _signed(0.0, decimals)
    if size < 1e-4 or size >= 1e7:
        mantissa, exponent = f"{value:.1e}".split("e")
        mantissa = mantissa.replace("-", MINUS)
        return f"{mantissa}{SPACE}{TIMES}{SPACE}10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    if decimals is None:
        decimals = column_decimals([value])
    return _signed(value, decimals)


def column_decimals(values: Sequence[float | None]) -> int:
    """The decimals that give the numbers of a column three significant digits at their middle."""
    sizes = sorted(abs(value) for value in values if value)
    if not sizes or all(size == int(size) for size in sizes):
        return 0
    middle = sizes[len(sizes) // 2]
    return min(max(2 - math.floor(math.log10(middle)), 0), 6)


def moment(value: object) -> str:
    """An ISO 8601 time as ``2026-11-21 09:00 UTC``; anything else as it is."""
    raw = fields.text(value, 60)
    try:
        parsed = datetime.fromisoformat(raw)
    except ValueError:
        return raw
    if parsed.tzinfo is None:
        return f"{parsed:%Y-%m-%d %H:%M}"
    try:
        return f"{parsed.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except OverflowError:
        return raw


def listed(names: Sequence[str], most: int = 3) -> str:
    """Names in a row: ``cat, dog and 3 more``."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most:,} more"
    if len(names) > 1:
        return f"{', '.join(names[:-1])} and {names[-1]}"
    return names[0] if names else ""


def pieces(name: str) -> list[str]:
    """Where a long name may be broken: after ``:``, ``,``, ``=``, ``.``, ``/`` and ``_``.

    >>> pieces("ft:recipe.epochs=5")
    ['ft:', 'recipe.', 'epochs=', '5']
    """
    return re.findall(r"[^:,=./_]*[:,=./_]+|[^:,=./_]+", name)


def _signed(value: float, decimals: int) -> str:
    rounded = f"{value:,.{decimals}f}"
    if rounded.startswith("-"):
        # A true minus sign; and nothing is minus zero.
        digits = rounded[1:]
        return digits if not digits.strip("0.,") else f"{MINUS}{digits}"
    return rounded
