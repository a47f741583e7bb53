"""Small multiples as SVG: accuracy and attack success over one setting after another.

A point is the mean over the seeds, the bar through it their range. Settings stand side by side at
equal distances. The colours have their own background and follow the reader's light or dark mode.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLUMNS, WIDTH, HEIGHT = 3, 240, 176  # panels in a row, and the room of one
LEFT, RIGHT, TOP, BOTTOM = 48, 8, 34, 30  # around a plot
NAMES = ("ACC", "ASR")
STYLE = """
    :root { --page: #fff; --ink: #24292f; --faint: #d8dee4; --acc: #1f6fb2; --asr: #c2410c }
    @media (prefers-color-scheme: dark) {
      :root { --page: #1c2128; --ink: #d7dde3; --faint: #444c56; --acc: #6cb6ff; --asr: #ff9a62 }
    }
    text { font: 11px system-ui, sans-serif; fill: var(--ink) }
    .title, .default { font-weight: 700 }
    .title { font-size: 12px }
    .grid { stroke: var(--faint) }
    .acc { stroke: var(--acc); fill: var(--acc) }
    .asr { stroke: var(--asr); fill: var(--asr) }
    path { fill: none !important; stroke-width: 1.5 }
"""


@dataclass(frozen=True)
class Panel:
    """One factor.

    Attributes:
        title: its name.
        default: the setting that is printed bold.
        points: setting → the accuracies and the attack success rates in [0, 1], one per seed; a
            setting that has none leaves a gap.
    """

    title: str
    default: str
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]]


def picture(panels: Sequence[Panel]) -> str:
    """The SVG; what the marks mean stands in the place after the last panel."""
    rows = len(panels) // COLUMNS + 1
    width, height = COLUMNS * WIDTH, rows * HEIGHT
    body = [_moved(place, _panel(panel)) for place, panel in enumerate(panels)]
    body.append(_moved(len(panels), _legend()))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">\n'
        "  <title>Accuracy and attack success rate after the repair</title>\n"
        f"  <style>{STYLE}  </style>\n"
        f'  <rect width="{width}" height="{height}" rx="6" style="fill: var(--page)"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _moved(place: int, parts: Sequence[str]) -> str:
    x, y = place % COLUMNS * WIDTH, place // COLUMNS * HEIGHT
    lines = "\n".join(f"    {part}" for part in parts)
    return f'  <g transform="translate({x} {y})">\n{lines}\n  </g>'


def _panel(panel: Panel) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [_text(LEFT, TOP - 14, panel.title, "title", "start")]
    for share in (0, 0.5, 1):
        y = _y(share)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:g}" y2="{y:g}"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{100 * share:.0f} %", "", "end"))
    step = (right - LEFT) / len(panel.points)
    places = {name: LEFT + (index + 0.5) * step for index, name in enumerate(panel.points)}
    for name, x in places.items():
        kind = "default" if name == panel.default else ""
        parts.append(_text(x, bottom + 16, name, kind, "middle"))
    for index, name in enumerate(NAMES):
        shift = 3 * (2 * index - 1)  # so that bars at the same height lie side by side
        known = [
            (places[key] + shift, scores[index])
            for key, scores in panel.points.items()
            if scores[index]
        ]
        if not known:
            continue
        line = " ".join(f"{x:.1f},{_y(statistics.fmean(shares)):.1f}" for x, shares in known)
        parts.append(f'<path class="{name.lower()}" d="M{line}"/>')
        for x, shares in known:
            low, high = _y(min(shares)), _y(max(shares))
            parts.append(f'<path class="{name.lower()}" d="M{x:.1f},{low:.1f} V{high:.1f}"/>')
            parts.append(_mark(name, x, _y(statistics.fmean(shares))))
    return parts


def _legend() -> list[str]:
    parts = []
    for index, (name, words) in enumerate(zip(NAMES, ("accuracy", "attack success"), strict=True)):
        y = TOP + 10 + 22 * index
        parts.append(_mark(name, LEFT, y))
        parts.append(_text(LEFT + 12, y + 4, f"{name}, {words}", "", "start"))
    parts.append(_text(LEFT - 4, TOP + 58, "bold: the default", "default", "start"))
    parts.append(_text(LEFT - 4, TOP + 80, "mean and range over seeds", "", "start"))
    return parts


def _mark(name: str, x: float, y: float) -> str:
    if name == "ACC":
        return f'<circle class="acc" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>'
    return f'<rect class="asr" x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"/>'


def _text(x: float, y: float, words: str, kind: str, anchor: str) -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _y(share: float) -> float:
    return TOP + (1 - share) * (HEIGHT - TOP - BOTTOM)
