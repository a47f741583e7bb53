"""The heat map of votes, from records that are right and from such as are not."""

import copy

import pytest
import torch

from bezoar.methods.votes import Votes, reading
from bezoar.report import render
from bezoar.report.votes_map import votes_map

NAMES = [f"c{k}" for k in range(10)]


def witness(answers, names=NAMES):
    votes = Votes(torch.as_tensor(answers))
    return {"votes": votes.as_record(), "reading": reading(votes).as_record(names)}


def all_to_next(classes, images=10):
    return images * torch.eye(classes, dtype=torch.long).roll(1, 1)


def test_each_row_is_a_source_in_per_cent_of_its_images():
    answers = all_to_next(10, 300)
    answers[3] = torch.tensor([0, 0, 0, 74, 225, 0, 0, 0, 0, 1])
    answers[6] = 0
    shown = votes_map(witness(answers), NAMES)
    assert [row.name for row in shown.sources] == [name for name in NAMES if name != "c6"]
    row = shown.sources[3]
    assert [cell.shown for cell in row.cells] == ["", "", "", "25", "75", "", "", "", "", "<1"]
    assert [cell.stays for cell in row.cells] == [k == 3 for k in range(10)]
    assert (row.images, row.cells[4].percent) == ("300", 75)
    assert row.cells[4].told == "225 of 300: c3 → c4"
    assert shown.note == "1 class has no counted image."
    assert shown.answers[4] == ("c4", True) and shown.answers[7] == ("c7", False)
    assert shown.sentence.startswith("The recovered trigger has no single target (all-to-all)")


def test_of_many_classes_those_are_shown_that_lose_most_and_where_these_go():
    names = [f"c{k}" for k in range(60)]
    answers = all_to_next(60)
    answers[20:40] *= 3
    shown = votes_map(witness(answers, names), names)
    assert [row.name for row in shown.sources] == names[20:40]
    assert [name for name, _ in shown.answers] == names[21:41]
    assert [row.cells[place].shown for place, row in enumerate(shown.sources)] == ["100"] * 20
    assert shown.note == (
        "Of 60 classes, the rows are the 20 that lose the most images, and the columns the 20 that "
        "get the most of these."
    )


@pytest.mark.parametrize(
    "counts",
    [
        None,
        "votes",
        7,
        [],
        [None, 3, "x", [], [1], [1, 2], [1, 2, 3, 4], {"a": 1}],
        [[-1, 0, 5], [0, 10, 5], [10**9, 0, 5], [0, 1, -5], [0, 1, 0], [0.5, 1, 2]],
        [[0, 1, float("nan")], [0, "1", 5], [True, 1, 5], [[0], 1, 5]],
    ],
)
def test_counts_that_make_no_sense_are_left_out(counts):
    assert votes_map({"votes": {"counts": counts}}, NAMES) is None
    mixed = [*counts, [0, 1, 5]] if isinstance(counts, list) else [[0, 1, 5]]
    shown = votes_map({"votes": {"counts": mixed}, "reading": "dog"}, NAMES)
    (row,) = shown.sources
    assert [cell.shown for cell in row.cells] == ["", "100", *[""] * 8]
    assert shown.sentence == "" and not any(target for _, target in shown.answers)


def test_a_record_without_votes_or_names_has_no_map():
    assert votes_map({}, NAMES) is None and votes_map({"votes": []}, NAMES) is None
    assert votes_map(witness(all_to_next(10)), []) is None


def test_the_page_shows_the_map_of_each_witness_that_has_one(make_record, with_patches):
    record = with_patches(make_record())
    title = "Where images of each class go with the recovered trigger"
    assert title not in render(record)
    named = copy.deepcopy(record)
    named["model"]["classes"][5] = "<b>dog</b>"
    named["evidence"][1] |= witness(all_to_next(10), named["model"]["classes"])
    page = render(named)
    assert page.count(title) == 1 and page.count('class="stays') == 10
    assert "deer → &lt;b&gt;dog&lt;/b&gt;" in page and "<b>dog" not in page
    assert "(all-to-all)" in page
    for item in named["evidence"]:
        item |= {"votes": {"counts": [[0, 1, 10**99], "x"]}, "reading": {"targets": "all"}}
    assert render(named).count(title) == 2
