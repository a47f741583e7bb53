"""The images that a repair was made with: where they come from, how good they are, the checks."""

import copy

import pytest
from public_methods import TOLD
from test_report import is_sound

from bezoar.report import render
from bezoar.report.material_view import read_material
from bezoar.report.repair_view import read_repair
from bezoar.report.rounds_view import rounds_in_words

NAMES = tuple(f"class {k}" for k in range(10))
PUBLIC = {"kind": "images", "source": "streets/", "count": 4000, "sha256": "ab" * 32}


@pytest.fixture
def record(make_record):
    """A repair with public images and no image of the task."""
    unknown = ("images", "scan", "rescan", "before", "after", "agreement", "accuracy_drop")
    given = make_record("clean") | dict.fromkeys(unknown)
    return given | {"judged_on": "no images", "public": PUBLIC, "repair": copy.deepcopy(TOLD)}


def facts(view):
    return {item.label: (item.value, item.note) for item in view.facts}


def told(**changes):
    return read_material({**TOLD, **changes}, PUBLIC, NAMES)


def test_the_page_tells_where_the_images_come_from_and_what_was_checked(record):
    outline = is_sound(render(record))
    heads = outline.headings
    first = heads.index("Images that the repair was made with")
    assert heads[first + 1 : first + 5] == [
        "Can they hold the trigger?",
        "What is known of them",
        "The shuffling test",
        "Controls",
    ]
    for part in (
        "The method searched for them among all images that a generator can make",
        "The generator never met the suspect model.",
        "Images kept 93 of 400 that were tried",
        "Classes with too few cat",
        "Unnaturalness 0.250 four fifths lie between −1.50 and 2.25",
        "Images a minute 128",
        "Time of the search sure answers 25.0 %, input stability 50.0 %",
        "Images of each class, 3 to 10, in order of class. Marked: those with too few.",
        "The whiskers are the 10 % and 90 % quantiles.",
        "Under shuffling, class 4 keeps its images.",
        "deer 92.0 % 6.7 % 0.003",
        "Random images of the generator 94.0 % 4.0 %",
        "Clean images of the task 99.0 % 1.0 %",
        "public images 4000",
        "Agreement on fresh generated images 95.0 %",
        "Under recovered patterns 77.0 % → 3.0 % of fresh generated images change their class",
        "changed 90.0 % of the answers, 80.0 % of these to class deer. After the last round",
        "Public images streets/",
        "Number of public images 4,000",
        "SHA-256 of the public images abab",
        "Shuffling test Layers of the model get",
        "Clean images none were given",
    ):
        assert part in outline.text, part
    assert "synthetic" not in outline.text.lower(), "the method has its own words"


def test_a_repair_without_public_images_says_nothing_of_them(make_record):
    record = make_record("clean")
    outline = is_sound(render(record))
    assert "Images that the repair was made with" not in outline.headings
    assert "ublic images" not in outline.text and "Inversion" not in outline.text
    assert not read_repair(record).material.told


def test_a_generator_is_named_and_its_doubts_are_marked(record):
    doubt = "It is not known whether the generator was trained without the suspect model."
    record["public"] = {
        "kind": "generator",
        "source": "g.toml",
        "apart": None,
        "independence": doubt,
        "origin": {"kind": "toy"},
    }
    record["repair"].pop("generator")
    page = render(record)
    outline = is_sound(page)
    assert f'<p class="doubtful">{doubt}</p>' in page
    assert "Generator g.toml" in outline.text and "Public images" not in outline.headings
    assert 'class="doubtful"' not in render(record | {"repair": TOLD}), "one that is apart"


@pytest.mark.parametrize(
    ("samples", "public", "begins"),
    [
        ("random", PUBLIC, "They are random images of a generator"),
        ("public", PUBLIC, "They are the public images"),
        ("pixels", PUBLIC, "The method searched for them pixel by pixel"),
        (None, None, "The method made them up, without data"),
        (None, PUBLIC, "The method worked on them instead of images of the task"),
        ("an unknown kind", PUBLIC, "The method worked on them instead of images of the task"),
    ],
)
def test_each_kind_of_images_has_its_words(samples, public, begins):
    view = read_material({"samples": samples}, public, NAMES)
    assert view.lead.startswith(begins)
    assert view.told == (public is not None)


def test_the_columns_are_as_high_as_their_counts():
    view = told(inversion={"per_class": [4, 2, 0, 1], "short": [2, 3]}).counts
    assert [column.height for column in view.columns] == [100.0, 50.0, 0.0, 25.0]
    assert [column.marked for column in view.columns] == [False, False, True, True]
    assert [column.x for column in view.columns] == [0.0, 25.0, 50.0, 75.0]
    assert view.title == "Images of each class, 0 to 4; too few: class 2, class 3"
    assert facts(told(inversion={"short": [2], "missing": [3]})) == {
        "Classes with too few": ("class 2 and class 3", "")
    }
    even = told(inversion={"per_class": [5, 5], "short": []}).counts
    assert even.caption == "Images of each class: 5."
    for odd in ([], [3], [0, 0], "x", None):
        assert told(inversion={"per_class": odd}).counts is None


def test_quantiles_lie_where_they_belong():
    spread = told().spread
    assert [(row.label, row.share.low, row.share.value, row.share.high) for row in spread.rows] == [
        ("Confidence", 0.91, 0.97, 0.995),
        ("Stability score", 0.72, 0.84, 0.93),
    ]
    only = told(inversion={"quantiles": {"stability": [0.1, 0.2, 0.3], "confidence": []}}).spread
    assert [row.label for row in only.rows] == ["Stability score"]
    assert told(inversion={"quantiles": {}}).spread is None
    assert facts(told(inversion={"quantiles": {"unnaturalness": [None, 1.0]}})) == {
        "Unnaturalness": ("1", "")
    }


def test_the_classes_that_stand_out_come_first_and_most_are_left_out():
    classes = {str(k): {"own": 0.1, "drawn": 0.05, "p_value": 1 - k / 100} for k in range(40)}
    view = told(shuffling={"per_class": classes, "standing_out": [3, 38]}).shuffled
    assert [row[0] for row in view.rows[:4]] == ["class 38", "class 3", "class 39", "class 37"]
    assert view.marked == [True, True] + [False] * 10
    assert view.caption.endswith("The 12 classes that stand out most of 40.")
    for odd in ({}, {"x": {"own": 1}}, {"9" * 5000: {"own": 1}}, {"1": {}}, [1, 2], None):
        assert told(shuffling={"per_class": odd}).shuffled is None


def test_the_patterns_of_the_rounds_are_told_and_rounds_of_other_methods_are_not():
    view = read_repair({"outcome": "done", "repair": TOLD, "model": {"classes": NAMES}})
    assert view.rounds.endswith(
        "changed 10.0\u00a0% of the answers, 80.0\u00a0% of these to class 4."
    )
    for other in ([], [{"share": 0.5, "towards": 1, "led": 0.2}], "x", None):
        assert rounds_in_words(other, NAMES) == ""


def test_a_pattern_that_changes_nothing_leads_nowhere():
    still = {"changed": 0.0, "suspected_target": None, "target_share": None}
    assert rounds_in_words([still], NAMES).endswith("images, changed 0.0\u00a0% of the answers.")
