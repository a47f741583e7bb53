"""Where the names of dots go in a picture, so that they cover neither dots nor one another.

Each name tries places around its dot, near ones first, and takes the cheapest: overlaps cost most,
then leaders that cross something, then distance. The dots with the most neighbours choose first.
The same dots give the same places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LETTER = 6.7  # pixels; about the widest that a common font needs for a letter of 11 pixels
LINE = 13.0  # pixels, the height of a name
_DOT = 6.0  # half the room that a dot keeps free
_REACHES = (0.0, 9.0, 20.0, 34.0, 50.0, 68.0, 88.0, 112.0, 140.0)
_TURNS = 24


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(wide, 0.0) * max(high, 0.0)

    def holds(self, other: Box) -> bool:
        """Whether the other lies inside."""
        return (
            self.left <= other.left
            and self.top <= other.top
            and self.right >= other.right
            and self.bottom >= other.bottom
        )

    def near(self, point: tuple[float, float], reach: float) -> bool:
        """Whether a point lies inside, or no farther away than that along either side."""
        x, y = point
        return (
            self.left - reach <= x <= self.right + reach
            and self.top - reach <= y <= self.bottom + reach
        )


@dataclass(frozen=True)
class Label:
    """A name at its place: ``(x, y)`` is the middle of its left edge.

    Attributes:
        leader: the line from the dot to the name, as (x, y) of its far end; None where the name is
            next to its dot.
    """

    x: float
    y: float
    leader: tuple[float, float] | None


def place(
    dots: Sequence[tuple[float, float]],
    names: Sequence[str],
    room: Box,
    taken: Sequence[Box] = (),
) -> list[Label | None]:
    """A place for each name; None where every place would cover something.

    Args:
        dots: places in pixels.
        names: one for each.
        room: what they must stay in.
        taken: what they must not cover.

    >>> place([(50, 50)], ["rnp"], Box(0, 0, 200, 100))[0].leader is None
    True
    """
    marks = [Box(x - _DOT, y - _DOT, x + _DOT, y + _DOT) for x, y in dots]
    crowd = [sum(math.dist(dot, other) < 60 for other in dots) for dot in dots]
    found: list[Label | None] = [None] * len(dots)
    covered = list(taken)
    lines: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for number in sorted(range(len(dots)), key=lambda n: (-crowd[n], dots[n], n)):
        width = LETTER * len(names[number])
        best: tuple[float, Box, tuple[float, float] | None] | None = None
        for reach, box in _candidates(dots[number], width):
            if best is not None and best[0] <= reach:
                break  # none of what follows can cost less
            if not room.holds(box) or any(box.overlap(other) > 0 for other in covered):
                continue
            if any(box.overlap(mark) > 0 for mark in marks):
                continue
            end = _nearest(box, dots[number]) if reach > 0 else None
            cost = reach
            cost += 40 * sum(_crosses(line, box) for line in lines)
            if end is not None:
                line = dots[number], end
                cost += 8 + 40 * sum(_crosses(line, other) for other in covered)
                cost += 25 * sum(_crosses(line, m) for k, m in enumerate(marks) if k != number)
                cost += 25 * sum(_cut(line, other) for other in lines)
            else:
                # Beside its own dot a name must not look as if it were another one's.
                cost += 12 * sum(box.near(dot, _DOT + 4) for dot in dots[:number])
                cost += 12 * sum(box.near(dot, _DOT + 4) for dot in dots[number + 1 :])
            if best is None or cost < best[0]:
                best = cost, box, end
        if best is not None:
            _, box, end = best
            covered.append(box)
            if end is not None:
                lines.append((dots[number], end))
            found[number] = Label(box.left, (box.top + box.bottom) / 2, end)
    return found


def _candidates(dot: tuple[float, float], width: float) -> list[tuple[float, Box]]:
    """Boxes around a dot, from right beside it to far away."""
    x, y = dot
    found = []
    for reach in _REACHES:
        for turn in range(_TURNS):
            angle = 2 * math.pi * turn / _TURNS
            across, down = math.cos(angle), math.sin(angle)
            # The middle of the box lies where its edge is ``reach`` away from the dot's room.
            middle_x = x + across * (_DOT + 1 + reach + width / 2)
            middle_y = y + down * (_DOT + 1 + reach + LINE / 2)
            box = Box(
                middle_x - width / 2, middle_y - LINE / 2, middle_x + width / 2, middle_y + LINE / 2
            )
            found.append((reach, box))
    return found


def _nearest(box: Box, dot: tuple[float, float]) -> tuple[float, float]:
    """The point of the box that is nearest to the dot."""
    x, y = dot
    return min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)


Line = tuple[tuple[float, float], tuple[float, float]]


def _crosses(line: Line, box: Box) -> bool:
    """Whether a line enters a box."""
    corners = (
        (box.left, box.top), (box.right, box.top), (box.right, box.bottom), (box.left, box.bottom),
    )  # fmt: skip
    inside = any(box.left < x < box.right and box.top < y < box.bottom for x, y in line)
    return inside or any(_cut(line, (corners[side], corners[(side + 1) % 4])) for side in range(4))


def _cut(first: Line, second: Line) -> bool:
    """Whether two lines cross."""

    def side(line: Line, point: tuple[float, float]) -> float:
        (ax, ay), (bx, by) = line
        return (bx - ax) * (point[1] - ay) - (by - ay) * (point[0] - ax)

    return (
        side(first, second[0]) * side(first, second[1]) < 0
        and side(second, first[0]) * side(second, first[1]) < 0
    )
