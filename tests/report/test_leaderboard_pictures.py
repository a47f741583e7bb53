import random
import re
from pathlib import Path

import numpy as np
import pytest

from bezoar.report import heat_map as heat_module
from bezoar.report import leaderboard
from bezoar.report.heat_map import SWITCH, heat_map
from bezoar.report.labels import LETTER, LINE, Box, place
from bezoar.report.plane import ROOM, planes


def row(label, drop, asr, *, images=100, role="method", **more):
    means = {"acc_drop": {"mean": drop}, "asr_after": {"mean": asr}}
    return {"label": label, "images": images, "role": role, **means, **more}


def boxes(found, names):
    return [
        Box(at.x, at.y - LINE / 2, at.x + LETTER * len(name), at.y + LINE / 2)
        for at, name in zip(found, names, strict=True)
        if at is not None
    ]


@pytest.mark.parametrize("seed", range(5))
def test_names_cover_neither_dots_nor_one_another(seed):
    drawn = random.Random(seed)  # noqa: S311  # places, not secrets
    dots = [(drawn.uniform(60, 300), drawn.uniform(200, 380)) for _ in range(20)]
    names = [f"method-{n}"[: drawn.randint(3, 10)] for n in range(20)]
    found = place(dots, names, ROOM)
    assert sum(label is None for label in found) <= 2
    placed = boxes(found, names)
    for number, box in enumerate(placed):
        assert ROOM.holds(box)
        assert all(box.overlap(other) == 0 for other in placed[:number])
        assert not any(box.near(dot, 0.0) for dot in dots)
    assert place(dots, names, ROOM) == found


def test_a_name_without_room_is_left_out_and_counted():
    dots = [(100.0 + n / 10, 300.0) for n in range(80)]
    found = place(dots, ["a-long-name-of-a-method"] * 80, ROOM)
    assert None in found and any(label is not None for label in found)
    crowd = [row(f"a-long-name-{n}", 0.01, 0.05) for n in range(80)]
    assert planes(crowd)[0].unnamed > 0


def test_there_is_a_plane_for_each_budget_with_the_references_in_each():
    rows = [
        row("no defense", 0.0, 0.98, images=0, role="reference"),
        row("clean twin", -0.004, 0.02, images=0, role="reference"),
        row("dhbe", 0.03, 0.2, images=0),
        row("rnp", 0.01, 0.02, images=100),
        row("ft:recipe.epochs=5", 0.005, 0.6, images=500, role="control"),
        {"label": "anp", "images": 500, "role": "method"},
    ]
    found = planes(rows)
    assert [plane.title for plane in found] == [
        "no clean image", "100 clean images", "500 clean images",
    ]  # fmt: skip
    kinds = [[dot.kind for dot in plane.dots] for plane in found]
    assert kinds == [["method", "undefended", "twin"]] * 2 + [["control", "undefended", "twin"]]
    assert len({tuple(tick.label for tick in plane.across) for plane in found}) == 1


def test_better_is_left_and_lower_and_the_corner_holds_what_is_removed():
    good, bad = planes([row("good", 0.01, 0.03), row("bad", 0.06, 0.5)])[0].dots
    assert good.x < bad.x and good.y > bad.y
    right, top = planes([row("good", 0.01, 0.03)])[0].corner
    assert good.x < right < bad.x and good.y > top > bad.y
    edge = planes([row("edge", 0.05, 0.10)])[0]
    assert (edge.dots[0].x, edge.dots[0].y) == edge.corner


def test_without_a_measured_method_there_is_no_picture():
    assert planes([]) == []
    assert planes([row("no defense", 0.0, 1.0, role="reference")]) == []
    assert heat_map([], [], ["blend"]) is None


def test_cells_without_a_number_are_hatched_and_say_why():
    about = {"der": 0.95, "asr_after": 0.02, "acc_drop": 0.01, "models": 1}
    rows = [row("rnp", 0.01, 0.02, attacks={"blend": about})]
    runs = [
        {"images": 100, "label": "rnp", "attack": attack, "status": "backdoored", "state": state}
        for attack, state in (
            ("blend", "done"), ("blend", "failed"), ("wanet", "failed"), ("signal", "missing"),
        )
    ]  # fmt: skip
    runs.append(runs[0] | {"label": "other", "attack": "trojan"})
    found = heat_map(rows, runs, ["blend", "wanet", "signal", "trojan", "never"])
    assert found.attacks == ["blend", "wanet", "signal", "trojan"]
    assert [cell.text for cell in found.groups[0].rows[0].cells] == [
        "95.0", "failed", "to do", "not run",
    ]  # fmt: skip
    shares = [cell.share for cell in found.groups[0].rows[0].cells]
    assert shares == [90, None, None, None]
    first, second, *_ = found.groups[0].rows[0].cells
    assert first.partial and "1 failed" in first.told and "ASR 2.0" in first.told
    assert "1 failed" in second.told and found.partial and found.hatched


def luminance(colour):
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in colour]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def colour(digits):
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    return np.array([int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)])


def test_numbers_have_enough_contrast_on_every_colour_of_the_map():
    folder = Path(leaderboard.__file__).parent
    schemes = [
        re.findall(r":root \{(.*?)\}", (folder / name).read_text(), flags=re.DOTALL)
        for name in ("base.css", "leaderboard.css")
    ]
    assert [len(found) for found in schemes] == [3, 3]  # light, dark, print
    for base, more in zip(*schemes, strict=True):
        colours = dict(re.findall(r"--([\w-]+): #([0-9a-f]+);", base + more))
        low, high = colour(colours["faint"]), colour(colours["heat"])
        for share in range(101):
            cell = heat_module.HeatCell("", share, "")
            front = colour(colours["on-high" if cell.high else "on-low"])
            back = share / 100 * high + (1 - share / 100) * low
            dark, light = sorted((luminance(front), luminance(back)))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (share, more)
    assert heat_module.HeatCell("", SWITCH + 1, "").high
