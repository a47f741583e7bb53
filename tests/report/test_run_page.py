import copy

import pytest
from leaderboards import make
from test_report import is_sound

from bezoar.report.leaderboard import render_run
from bezoar.report.run_view import read_run
from bezoar.report.tree import DEEPEST, MOST, Node, read_tree

JUNK = (
    None,
    "",
    "text",
    3,
    -1.5,
    True,
    [],
    [None, {}],
    {},
    {"value": {}},
    {"a": [1]},
)


@pytest.fixture(scope="module")
def records():
    _, found = make(
        attacks=("bad-nets", "wanet"), methods=("rnp", "anp", "ft"), seeds=(0,),
        halves=("held-out",), controls=(5,), images=(500,), missing=0.0, failing=0.0,
    )  # fmt: skip
    return list(found.values())


@pytest.fixture(scope="module")
def record(records):
    return next(r for r in records if r["label"] == "rnp" and r["reported"] and "oracle" in r)


def test_what_a_record_says_is_on_the_page(record):
    outline = is_sound(render_run(record, "A benchmark"))
    interval = record["der"]
    expected = [
        "A benchmark",
        "On cifar10-resnet-8-bad-nets-h00000, with 500 clean images, seed 0.",
        f"DER {100 * record['der']['value']:.1f} %",
        f"95 % interval {100 * interval['low']:.1f}–{100 * interval['high']:.1f} %",
        "of 1,800 images",
        "max_drop 0.03",
        "learning_rate 0.001",
        "tried 1 threshold 0.1 acc 0.86 2 threshold 0.2 acc 0.85",
        "The held-out accuracy never fell; the last threshold was taken.",
        "best_epoch none",
        "WRN-16-1, 2,500 images",
        "README of the official repository",
        "The oracle's choice: not a result",
        "It would have chosen: threshold 0.25.",
        "310 MiB",
        "torch 2.13.0",
        "x86_64",
        "2026-11-28 19:00 UTC",
        "5.0 % of the training images",
        record["key"],
        '"peak_memory"',
    ]
    assert [part for part in expected if part not in outline.text] == []
    assert not any(tag == "script" for tag, _ in outline.tags)
    links = [found["href"] for tag, found in outline.tags if tag == "a"]
    assert links == ["../index.html"] * 2


def test_nothing_may_run_on_the_page_of_a_run(record):
    page = render_run(record, "A benchmark")
    assert "default-src 'none'" in page and "script-src" not in page


def test_a_failed_run_gives_reason_and_traceback(records):
    record = next(r for r in records if r["state"] == "failed")
    outline = is_sound(render_run(record, "A benchmark"))
    failure = record["failure"]
    assert "It failed on" in outline.text and failure["message"] in outline.text
    assert 'File "running.py", line 99' in outline.text
    assert "The result" not in outline.headings


def test_a_reference_has_an_after_only(records):
    record = next(r for r in records if r["label"] == "no defense")
    outline = is_sound(render_run(record, "A benchmark"))
    assert "as a reference" in outline.text and "a reference has no before" in outline.text


def test_a_clean_twin_has_no_facts_of_the_backdoored_network(records):
    record = next(r for r in records if r["label"] == "clean twin")
    facts = {one.label: one.value for one in read_run(record, "A benchmark").model}
    assert facts["Model"] == f"Twin of {record['model']['name']}, trained without poison"
    assert facts["Attack"] == "none: the model was trained without poison"
    assert not facts.keys() & {"Target class", "Poisoned", "Counts as"}
    assert "Twin of an unnamed model" in render_run({"label": "clean twin"}, "")


def test_an_oracle_that_chose_nothing_says_why(record):
    nothing = {"setting": None, "reason": "every setting costs a tenth of the accuracy or more"}
    outline = is_sound(render_run(record | {"oracle": nothing}, "A benchmark"))
    assert "It would have chosen nothing: every setting costs a tenth" in outline.text


def test_records_that_were_cut_short_or_edited_still_have_a_page(records, record):
    failed = next(r for r in records if r["state"] == "failed")
    for whole in (record, failed):
        for key in whole:
            is_sound(render_run({k: v for k, v in whole.items() if k != key}, "A benchmark"))
            for junk in JUNK:
                is_sound(render_run(copy.deepcopy(whole) | {key: junk}, "A benchmark"))
    no_numbers = dict.fromkeys(("seconds", "acc_drop", "seed", "der"), float("nan"))
    is_sound(render_run(record | no_numbers, "A benchmark"))
    is_sound(render_run({}, ""))


def test_settings_are_read_as_a_nested_list():
    value = {"a": None, "b": True, "c": 1e-5, "d": -2, "e": [], "f": {"g": "h"}, "i": [[1, 2], "x"]}
    assert read_tree(value) == [
        Node("a", "none"),
        Node("b", "yes"),
        Node("c", "1e−05"),
        Node("d", "−2"),
        Node("e", "empty"),
        Node("f", children=[Node("g", "h")]),
        Node("i", children=[Node("1", "1, 2"), Node("2", "x")]),
    ]
    assert read_tree("text") == read_tree(None) == []


def test_deep_and_long_values_are_cut_and_say_so():
    deep = {}
    for _ in range(500):
        deep = {"in": deep}
    nodes, levels = read_tree(deep), 1
    while nodes[0].children:
        nodes, levels = nodes[0].children, levels + 1
    assert levels == DEEPEST and "nested more deeply" in nodes[0].text
    long = read_tree({f"name {n}": n for n in range(MOST + 5)})
    assert len(long) == MOST + 1 and "5 more" in long[-1].text
    is_sound(render_run({"decided": deep, "config": {"method": deep}}, "A benchmark"))
    bottomless = []
    for _ in range(5000):
        bottomless = [bottomless]
    assert "nested too deeply" in render_run({"decided": bottomless}, "A benchmark")
