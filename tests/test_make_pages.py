"""The generated parts of the documentation: tables, settings, and what is kept."""

import importlib
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from bezoar.attacks import attacks
from bezoar.errors import InputError
from bezoar.methods import Method, methods

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """(name) → a script of ``benchmarks``, which finds the others beside it."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


class Inner(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a part.

    Attributes:
        rate, share: ``a|b`` chooses, and this
            goes on in a second line.

    An afterword: no setting.
    """

    rate: float = 0.5
    share: float | None = None


class Outer(msgspec.Struct, frozen=True, kw_only=True):
    """Settings.

    Attributes:
        inner: the part; None leaves it out.
        sizes: of patches.
    """

    inner: Inner | None = Inner()
    sizes: tuple[int, ...] = (2, 3)


def test_settings_are_listed_with_both_values_and_their_sentence(script):
    table = script("page_settings").settings_table(Outer(), Outer(inner=None, sizes=()))
    meaning = "`a\\|b` chooses, and this goes on in a second line."
    assert table.splitlines() == [
        "| setting | default | published | meaning |",
        "| --- | --- | --- | --- |",
        "| `inner` | see below | none | the part; None leaves it out. |",
        f"| `inner.rate` | 0.5 | – | {meaning} |",
        f"| `inner.share` | none | – | {meaning} |",
        "| `sizes` | 2, 3 | empty | of patches. |",
    ]
    assert "published" not in script("page_settings").settings_table(Outer(), None)


@pytest.mark.parametrize("name", methods.names())
def test_every_setting_of_every_method_has_a_sentence(script, name):
    kind = methods.get(name)
    try:
        published = kind.published()
    except InputError:
        published = None
    table = script("page_settings").settings_table(kind(), published)  # a KeyError names it
    assert "|  |" not in table
    for line in table.splitlines()[2:]:
        assert line.endswith(("here |", ". |", ".) |", "`) |")), f"cut off: {line}"


def test_a_second_line_that_reads_like_an_entry_is_none(script):
    class Cut(msgspec.Struct):
        """Two lines.

        Attributes:
            first: it is compared with the median length of the
                other classes: the target as well.
        """

        first: int = 1

    assert script("page_settings").meanings(Cut) == {
        "first": "it is compared with the median length of the other classes: the target as well."
    }


def run(attack, model, *, seed=0, state="done", label="rnp", role="method", **scores):
    status = "backdoored" if attack else "clean"
    known = {"label": label, "method": label, "images": 100, "half": "held-out", "role": role}
    row = known | {"model": model, "seed": seed, "attack": attack, "status": status, "state": state}
    if state == "failed":
        return row | {"failure": "InputError: too few images"}
    if state == "missing":
        return row
    acc, asr = scores["acc"], scores.get("asr")
    before, after = {"acc": {"value": 0.9}}, {"acc": {"value": acc}}
    if attack:
        before["asr"], after["asr"], after["ra"] = {"value": 1.0}, {"value": asr}, {"value": 0.5}
        row["der"] = {"value": ((1 - asr) - (0.9 - acc) + 1) / 2}
    return row | {"before": before, "after": after, "acc_drop": 0.9 - acc}


RUNS = [
    run("sig", "a", seed=0, acc=0.9, asr=1.0),
    run("sig", "a", seed=1, acc=0.9, asr=0.5),
    run("sig", "b", acc=0.7, asr=0.15),
    run("tbt", "c", acc=0.88, asr=0.02),
    run(None, "d", acc=0.87),
    run("tbt", "e", state="missing"),
    run("awp", "f", state="failed"),
]


def test_a_method_is_shown_by_attack_and_says_where_it_fails(script):
    text = script("page_tables").by_attack(RUNS)
    assert text.startswith("5 of 7 runs are done, 1 failed, 1 is still to be done.")
    assert "it removes the backdoor in 1 of 4 runs, on 3 backdoored models." in text
    # seeds of a model are averaged first: (0.75 + 0.15) / 2
    failing = "**It fails on** [`sig`](../attacks/sig.md) (45.0 % left, 10.0 points lost)."
    assert failing in text
    rows = [line.replace("\u00a0", " ") for line in text.splitlines()]
    sig = "| [`sig`](../attacks/sig.md) | 2 × 2 | 90.0 → 80.0 | 100.0 → 45.0 | 50.0 | 72.5 |"
    assert sig in rows
    assert "| *no backdoor* | 1 × 1 | 90.0 → 87.0 | – | – | – |" in rows
    assert "- `f` failed: InputError: too few images" in rows


def test_a_method_without_a_failing_attack_says_so(script):
    text = script("page_tables").by_attack([run("tbt", "c", acc=0.9, asr=0.0)])
    assert "On average no attack here misses it." in text
    assert (
        script("page_tables").by_attack([RUNS[5]]) == "0 of 1 runs are done, 1 is still to be done."
    )


def test_an_attack_is_shown_by_method_and_the_best_comes_first(script):
    same = {"acc": 0.9, "asr": 1.0, "role": "reference"}
    runs = [
        run("sig", "a", label="ft", role="control", acc=0.9, asr=0.0),
        run("sig", "a", label="clean twin", role="reference", acc=0.9, asr=0.0),
        run("sig", "a", label="worse", acc=0.9, asr=0.9),
        run("sig", "a", label="no defense", **same),
        run("sig", "a", label="better", acc=0.9, asr=0.1),
        run("sig", "a", label="slow", state="missing"),
    ]
    text = script("page_tables").by_method(runs)
    order = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if "→" in line]
    link = "[`{0}`](../methods/{0}.md)".format
    names = ["*no defense*", "*clean twin*", link("better"), link("worse"), link("ft")]
    assert order[1:] == names
    assert text.endswith("Still to be done: `slow`.")


def test_the_page_of_an_attack_says_how_many_looks_flag_it(script):
    page = script("registry_pages").attack_page
    row = {"attack": "sig", "backdoored models": 1, "draws of images": 3, "looks": 3}
    row |= {"flagged at 0.05": 0, "flagged at 0.01": 0, "class right": 0}
    other = row | {"asked": "no images", "flagged at 0.05": 2, "flagged at 0.01": 1}
    told = [{"asked": "all witnesses"} | row, other | {"class right": 3}]
    results = {"scan_power.json": {"title": "Power: all", "by attack": told}}
    text = page(attacks.get("sig"), RUNS, [], results)
    assert (
        "## Scans of it\n\n1 held-out model, 3 looks at each "
        "([Power: all](../measured.md#power-all)):\n\n"
        "- With all witnesses, the scan flags 0 of 3 looks at 5 %, 0 at 1 %; the right class comes "
        "first in 0.\n"
        "- With no images, the scan flags 2 of 3 looks at 5 %, 1 at 1 %; the right class comes "
        "first in 3.\n"
    ) in text
    assert "## Scans of it" not in page(attacks.get("blend"), RUNS, [], results)
    assert "## Scans of it" not in page(attacks.get("sig"), RUNS, [], {})


class Undescribed(Method, frozen=True, kw_only=True):
    """A method of which nobody wrote more."""

    name: ClassVar[str] = "undescribed"
    title: ClassVar[str] = "A method"
    inspects: ClassVar[bool] = True


def test_a_page_has_the_docstring_of_the_module_where_nothing_is_written_by_hand(script):
    pages = script("registry_pages")
    assert "tables, settings, and what is kept" in pages.method_head(Undescribed, described=False)
    head = pages.method_head(Undescribed, described=True)
    assert "what is kept" not in head
    assert "| removes the backdoor | no |" in head
    tail = pages.method_tail(Undescribed, RUNS, {"undescribed_x.json": {"title": "Seconds: all"}})
    assert "not in the grid" in tail
    assert "[Seconds: all](../measured.md#seconds-all)" in tail
    assert tail.endswith("There are none.")


def test_what_stands_outside_the_marks_is_kept(script):
    pages = script("make_pages")
    page = "before\n<!-- x: generated -->\nold\n<!-- x: end -->\nafter\n"
    new = pages._with_block(page, "x", r"new \1")
    assert new == "before\n<!-- x: generated -->\n\nnew \\1\n\n<!-- x: end -->\nafter\n"
    assert pages._with_block(new, "x", r"new \1") == new
    assert pages._without_blocks(new).split() == ["before", "after"]
    with pytest.raises(SystemExit, match="'y' are there 0 times"):
        pages._with_block(page, "y", "new")
