import copy
import html as html_module
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from public_methods import TOLD

from bezoar.errors import InputError
from bezoar.report import Picture, render, write
from bezoar.report import page_view as page_module

VERDICTS = ("backdoor found", "suspicious", "nothing found")
VOID = {"meta", "link", "img", "br", "wbr", "input"}


class Outline(HTMLParser):
    """Headings, visible text, ids, and the tags that were left open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if tag in {"dt", "dd", "small", "span", "td"}:
            self.words.append(" ")
        if tag in {"h1", "h2", "h3"}:
            self.headings.append("")
        if "id" in found:
            self.ids.append(found["id"])
        self.references += (found.get("aria-labelledby") or "").split()

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if any(tag in {"h1", "h2", "h3"} for tag in self.open):
            self.headings[-1] = (self.headings[-1] + data).strip()

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).replace("\u00a0", " ").split())


def is_sound(page: str) -> Outline:
    outline = Outline(page)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert set(outline.references) <= set(outline.ids)
    assert "nan" not in re.findall(r"[a-z]+", outline.text.lower())
    assert "None" not in outline.text
    return outline


@pytest.mark.parametrize("kind", ["scan", "clean", "demo"])
@pytest.mark.parametrize("verdict", VERDICTS)
def test_every_kind_and_verdict_is_a_sound_page(make_record, kind, verdict):
    outline = is_sound(render(make_record(kind, verdict=verdict)))
    assert outline.headings[-1] == "Words"
    assert sum(tag == "h1" for tag, _ in outline.tags) == 1
    assert not any(tag in {"script", "iframe", "object", "form"} for tag, _ in outline.tags)


@pytest.mark.parametrize("kind", ["scan", "clean", "demo"])
def test_a_number_and_its_percent_sign_stay_on_one_line(kind, make_record):
    html = render(make_record(kind))
    assert "98.4\N{NO-BREAK SPACE}%" in html and not re.search(r"\d %", html)


def test_scan_headline_is_the_verdict_and_the_suspect_is_named(make_record):
    outline = is_sound(render(make_record("scan")))
    assert outline.headings[0] == "Backdoor found"
    assert "Suspected target class dog class 5" in outline.text
    assert "p < 0.0001" in outline.text
    assert "suspicious below 1.70 (5 % level)" in outline.text
    assert "where every class of a backdoor-free model lies, in 95 of 100 models" in outline.text


def test_what_a_scan_record_says_is_on_the_page(make_record):
    record = make_record("scan")
    text = is_sound(render(record)).text
    expected = [
        record["sentence"],
        *record["reasons"],
        record["power"],
        record["statistic"]["name"],
        record["statistic"]["null"]["description"],
        record["command"],
        *record["skipped"],
        *record["notices"],
        *record["images"]["notices"],
        record["model"]["sha256"],
        record["images"]["sha256"],
        record["evidence"][0]["paper"],
        *record["model"]["classes"],
        "175,066",
        "2026-11-21 09:00 UTC",
        "features 0.41 s, solve 12 ms, total 0.63 s",
        "torch 2.13.0",
        "1.3 \u00d7 10⁻¹⁵",
        "500, 50 of each class",
        "1234",
        "98.4 %",
    ]
    assert [part for part in expected if part not in text] == []


def test_what_a_repair_record_says_is_on_the_page(make_record):
    record = make_record("clean")
    outline = is_sound(render(record))
    expected = [
        "Accuracy 84.8 → 83.6 % on 250 held-out images; written to cleaned.safetensors.",
        "84.8 % → 83.6 %",
        "95 % interval 79.6\u201387.6 %",
        "95.2 %",
        "The repair lost an estimated 1.2 points of accuracy, give or take 0.9 points; 4.0 points "
        "were allowed.",
        record["method"]["reason"],
        record["output"]["sha256"],
        "48 more tensors",
        "layer59.conv.weight",
        "10\u00d764",
        "31.0 %",
        "shifted loss",
        "1.25",
    ]
    assert outline.headings[0] == "Repaired"
    assert [part for part in expected if part not in outline.text] == []
    assert "ASR" not in outline.text


def test_unwritten_and_forced_repairs_say_so(make_record):
    record = make_record("clean") | {"written": False, "output": None, "outcome": "Not written: x."}
    assert is_sound(render(record)).headings[0] == "Not written"
    record = make_record("clean") | {"forced": True, "accuracy_drop": 0.2}
    assert is_sound(render(record)).headings[0] == "Written by force"


@pytest.mark.parametrize(
    "heading", ["Nothing changed", "Left untouched", "Repaired, signs of a backdoor left"]
)
def test_the_heading_is_the_records_and_not_said_twice(heading, make_record):
    record = make_record("clean") | {"heading": heading, "outcome": f"{heading}: the rest of it."}
    outline = is_sound(render(record))
    assert outline.headings[0] == heading
    assert "The rest of it." in outline.text and f"{heading}: the rest" not in outline.text


def test_a_network_that_nothing_changed_was_not_scanned_again(make_record):
    record = make_record("clean")
    outline = is_sound(render(record | {"heading": "Nothing changed", "rescan": record["scan"]}))
    assert outline.headings[:2] == ["Nothing changed", "What the scan saw"]
    assert "What is left" in outline.headings and "scanned again" not in outline.text


def test_what_a_method_refused_and_force_wrote_is_headed_so(make_record):
    refused = make_record("clean") | {"heading": "Not accepted", "accuracy_drop": 0.0}
    assert is_sound(render(refused | {"forced": True})).headings[0] == "Written by force"
    assert is_sound(render(refused | {"written": False})).headings[0] == "Not written"


def test_a_record_made_from_python_is_headed_by_its_own_heading(make_record):
    record = {k: v for k, v in make_record("clean").items() if k not in ("written", "forced")}
    assert is_sound(render(record | {"heading": "Left untouched"})).headings[0] == "Left untouched"
    assert is_sound(render(record | {"heading": ""})).headings[0] == "Not written"


@pytest.mark.parametrize(("kind", "place"), [("clean", "scan"), ("demo", "backdoored")])
def test_the_notices_of_the_scan_are_told_of_a_repair_too(kind, place, make_record):
    record = make_record(kind)
    scan = record[place] if kind == "clean" else record[place]["scan"]
    scan["notices"] = ["The witness rnp could not look: no labels."]
    outline = is_sound(render(record | {"skipped": []}))
    assert "The witness rnp could not look" in outline.text
    assert "Nothing was skipped" not in outline.text


def test_demo_tells_the_story_before_the_control(make_record):
    outline = is_sound(render(make_record("demo")))
    story = [
        "The backdoored network",
        "The evidence",
        "The repair",
        "The check with the true trigger",
        "The repaired model, scanned again",
        "The control: the same network trained without poison",
    ]
    assert [title for title in outline.headings if title in story] == story
    assert "99.3 % → 2.1 %" in outline.text
    assert "DER 97.7 %" in outline.text


def test_nothing_found_is_never_called_clean_or_safe(make_record):
    record = make_record("scan", verdict="nothing found")
    outline = is_sound(render(record))
    assert "no proof" in outline.text
    assert "clean model" not in outline.text.lower()
    assert not re.search(r"\b(safe|secure|harmless)\b", outline.text.lower())
    del record["power"]
    assert "This is no proof" in render(record)


def test_text_from_a_strangers_model_cannot_become_markup(make_record):
    evil = "<script>alert(1)</script>"
    record = make_record("demo")
    record = json.loads(
        json.dumps(record).replace("dog", evil).replace("model.safetensors", evil + '\\" onload=x')
    )
    record["repair"]["changes"][0]["tensor"] = evil
    record["repair"]["curves"][0]["name"] = evil
    record["repair"]["method"]["configuration"] = {evil: evil}
    record["versions"] = {evil: evil}
    pixels = np.zeros((1, 4, 4, 3), np.uint8)
    page = render(record, [Picture(evil, evil, pixels, ('"><script>',))])
    assert "<script" not in page
    outline = is_sound(page)
    assert evil in outline.text
    assert {name for _, attributes in outline.tags for name in attributes} <= {
        "alt", "aria-hidden", "aria-labelledby", "charset", "class", "content", "cx", "cy", "d",
        "dx", "height", "href", "http-equiv", "id", "lang", "name", "points",
        "preserveaspectratio", "r", "rel", "role", "rx", "scope", "src", "style", "tabindex",
        "text-anchor", "viewbox", "width", "x", "x1", "x2", "y", "y1", "y2",
    }  # fmt: skip


def test_class_names_cannot_reorder_or_break_the_page(make_record, tmp_path):
    record = make_record("scan")
    record["model"]["classes"][5] = "dog\u202eetirw\x00\ud800"
    page = render(record)
    assert "\u202e" not in page
    write(tmp_path / "page.html", page)  # a lone surrogate cannot be encoded
    assert "dog\ufffdetirw\ufffd\ufffd" in page


def test_the_page_forbids_itself_to_load_anything(make_record, picture):
    page = render(make_record("demo"), [picture])
    assert "Content-Security-Policy" in page
    assert "default-src 'none'" in page
    assert set(re.findall(r'(?:src|href)="([a-z]+:)', page)) == {"data:"}
    assert not re.search(r"url\(|@import|http://|https://", page)


@pytest.mark.parametrize(
    ("kind", "classes"), [("scan", 10), ("scan", 43), ("scan", 1000), ("clean", 10), ("clean", 200)]
)
def test_a_page_without_pictures_is_small(make_record, kind, classes):
    assert len(render(make_record(kind, classes)).encode()) <= 60_000


@pytest.mark.parametrize("classes", [2, 10, 40])
def test_up_to_forty_classes_each_have_a_dot(make_record, classes):
    page = render(make_record("scan", classes, "nothing found"))
    assert page.count('<circle class="dot') == classes
    assert 'class="column"' not in page


def test_of_many_classes_the_unusual_have_a_dot_and_all_are_counted(make_record):
    record = make_record("scan", 1000, "nothing found")
    last = record["ranking"][-1]
    record["suspects"] = [last]
    page = render(record)
    assert page.count('<circle class="dot') == 21
    assert page.count('<circle class="dot suspect"') == 1
    assert 'class="column"' in page
    assert "count all 1,000 classes" in page


def test_a_limit_of_one_witness_of_several_is_not_called_a_verdict(make_record):
    """Where p-values are combined, no value of one witness makes a finding."""
    record = make_record("scan", 10, "nothing found")
    assert "suspicious below" in is_sound(render(record)).text
    record["combined"] = {"factor": 1.0, "networks": 41, "sentence": "Combined."}
    text = is_sound(render(record)).text
    assert "suspicious below" not in text and "found below" not in text
    assert "5 % level of this witness alone: below 1.70" in text


def test_dots_lie_where_their_values_are(make_record):
    record = make_record("scan", 10)
    values = record["statistic"]["values"] = [float(place + 1) for place in range(10)]
    record["ranking"] = list(range(10))
    record["statistic"]["null"] = {"median": 5.5, "critical_suspicious": 3.0, "critical_found": 2.0}
    page = render(record)
    dots = [float(x) for x in re.findall(r'<circle class="dot[^"]*" cx="([\d.]+)%"', page)]
    assert len(dots) == len(values)
    steps = np.diff(dots)
    assert steps == pytest.approx(np.full(9, steps.mean()), abs=0.02)
    found, suspicious = (
        float(re.search(rf'<line class="{kind}" x1="([\d.]+)%"', page).group(1))
        for kind in ("found", "suspicious")
    )
    assert found == pytest.approx(dots[1], abs=0.02)
    assert suspicious == pytest.approx(dots[2], abs=0.02)


def test_each_witness_has_its_picture_with_its_own_unit_and_null(make_record, with_patches):
    outline = is_sound(render(with_patches(make_record("scan"))))
    text = outline.text
    shift, patch = (
        text.index(title)
        for title in (
            "tac: Length of the smallest latent shift",
            "neural-cleanse: L1 norm of the smallest mask, in pixels",
        )
    )
    assert shift < patch < text.index("Distances in MADs")
    assert "suspicious below 1.70 (2.5 % level)" in text, "each witness has half of the level"
    assert "A class without a dot has no value: no patch was found." in text
    assert "corrected for 10 classes and 2 methods" in text


def test_the_table_has_one_column_for_what_each_witness_saw(make_record, with_patches):
    record = with_patches(make_record("scan"))
    page = render(record)
    heads = re.findall(r'<th scope="col"[^>]*>([^<]+)</th>', page)
    assert heads == [
        "Class",
        "Index",
        "p-value",
        "tac: shift",
        "neural-cleanse: patch (pixels)",
        "tac: held-out images carried",
        "tac: weight length",
        "neural-cleanse: held-out images carried",
        "neural-cleanse: anomaly index",
    ]
    first = [re.sub("<[^>]+>", "", cell) for cell in _cells_of(page)[0]]
    assert first[:4] == ["dog", "5", "<\u00a00.0001", "0.84"]
    assert first[4] == "25.5"


def _cells_of(page):
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", html_module.unescape(body))
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_the_key_figures_are_those_of_the_witness_that_decided(make_record, with_patches):
    record = with_patches(make_record("scan"))
    assert "Carried into it 98.4 % of the held-out images, by one shift" in (
        is_sound(render(record)).text
    )
    record["statistic"] = record["evidence"][1]["statistic"]
    text = is_sound(render(record)).text
    assert "Its patch 25.5 pixels" in text
    assert "Carried into it 50.0 % of the held-out images, by one patch" in text
    assert text.index("neural-cleanse: L1") < text.index("tac: Length"), "the deciding one first"


def test_a_single_patch_method_is_shown_with_its_unit(make_record, with_patches):
    record = with_patches(make_record("scan"))
    record["evidence"] = record["evidence"][1:]
    record["statistic"] = record["evidence"][0]["statistic"]
    page = render(record)
    text = is_sound(page).text
    assert "Its statistic 25.5 pixels" in text and "by one patch" in text
    heads = re.findall(r'<th scope="col"[^>]*>([^<]+)</th>', page)
    assert heads[2:5] == ["Statistic (pixels)", "Score", "p-value"]
    assert "neural-cleanse: L1" not in text


def test_a_class_without_a_value_is_shown_as_such(make_record):
    record = make_record("scan")
    record["statistic"]["values"][3] = None
    record["evidence"][0]["per_class"]["norm"][3] = float("nan")
    record["evidence"][0]["per_class"]["weight_norm"][3] = math.inf
    record["p_values"][3] = None
    page = render(record)
    is_sound(page)
    assert ">no value<" in page
    assert page.count('<circle class="dot') == 9


def test_a_critical_value_far_outside_is_told_instead_of_drawn(make_record):
    record = make_record("scan")
    record["statistic"]["null"]["critical_found"] = -400.0
    page = render(record)
    assert '<line class="found"' not in page
    assert "beyond the left edge" in page


def test_long_curves_are_thinned_but_keep_their_spikes(make_record):
    record = make_record("clean")
    heights = [0.0] * 50_000
    heights[31_007] = 7.25
    heights[40_000] = None
    record["curves"] = [{"name": "loss", "x_name": "step", "x": [], "y": heights}]
    page = render(record)
    assert "from 0.00 to 7.25" in page
    points = " ".join(re.findall(r'<polyline points="([^"]+)"', page)).split()
    assert min(float(point.split(",")[1]) for point in points) < 10
    assert len(points) < 500


def test_pictures_are_embedded_as_they_are(make_record, picture):
    import base64
    import io

    from PIL import Image

    page = render(make_record("scan"), [picture])
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(found) == len(picture.images)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[2]))))
    assert np.array_equal(shown, picture.images[2])
    assert 'alt="Images of class dog, image 3: dog 0.93"' in page


@pytest.mark.parametrize("shape", [(2, 28, 28, 1), (1, 500, 300, 3), (1, 1, 400, 4), (0, 8, 8, 3)])
def test_pictures_of_any_size_and_channels(make_record, shape):
    outline = is_sound(render(make_record("scan"), [Picture("t", "", np.zeros(shape, np.uint8))]))
    sizes = [attributes for tag, attributes in outline.tags if tag == "img"]
    assert len(sizes) == shape[0]
    assert all(int(size["width"]) <= 192 and int(size["height"]) <= 192 for size in sizes)


@pytest.mark.parametrize(
    ("images", "captions"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), ()),
        (np.zeros((1, 3, 8, 8), np.uint8), ()),
        (np.zeros((2, 0, 8, 3), np.uint8), ()),
        (np.zeros((2, 8, 8, 3), np.uint8), ("one",)),
    ],
)
def test_unusable_pictures_are_refused(images, captions):
    with pytest.raises(InputError, match="picture 'dog'"):
        Picture("dog", "", images, captions)


@pytest.mark.parametrize("record", [{}, {"kind": "bench"}, {"kind": None}, [], None, {"kind": []}])
def test_a_record_of_another_kind_is_refused(record):
    with pytest.raises(InputError, match="expected one of scan, clean, demo"):
        render(record)


@pytest.mark.parametrize("kind", ["scan", "clean", "demo"])
def test_an_empty_record_says_what_is_missing(kind):
    outline = is_sound(render({"kind": kind}))
    assert "Nothing was skipped." in outline.text
    assert "The record holds no" in outline.text


def test_write_replaces_a_page_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "report.html"
    write(path, "old")
    write(path, "new ü")
    assert path.read_text(encoding="utf-8") == "new ü"
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]


def test_a_page_that_cannot_be_written_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="No space left on device"):
        write(path, "new")
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]


def test_unwritable_paths_are_named(tmp_path):
    with pytest.raises(InputError, match=r"missing.*existing folder"):
        write(tmp_path / "missing" / "report.html", "page")
    with pytest.raises(InputError, match="is a folder"):
        write(tmp_path, "page")


def test_letters_have_enough_contrast_in_every_scheme():
    css = (Path(page_module.__file__).parent / "base.css").read_text()
    schemes = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)
    assert len(schemes) == 3  # light, dark, print

    def luminance(colour):
        digits = colour if len(colour) == 6 else "".join(2 * digit for digit in colour)
        parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): #([0-9a-f]+);", scheme))
        for back in ("paper", "faint"):
            for front in ("ink", "muted", "found", "suspicious", "nothing", "unknown"):
                dark, light = sorted((luminance(colours[back]), luminance(colours[front])))
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (front, back, scheme)


# What a field may hold when a record was cut short, edited, or written by another version.
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers(-(10**320), 10**320)
    | st.text(st.characters(), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["value", "low", "high", "classes", "per_class", "values", "x", "<b>"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _places(record, prefix=()):
    """The path of every field of a record, not of single list entries beyond the first."""
    if isinstance(record, dict):
        pairs = list(record.items())
    elif isinstance(record, list):
        pairs = list(enumerate(record[:1]))
    else:
        return
    for key, value in pairs:
        yield (*prefix, key)
        yield from _places(value, (*prefix, key))


@SETTINGS
@given(data=st.data(), kind=st.sampled_from(["scan", "several", "clean", "public", "demo"]))
def test_any_field_may_be_missing_or_odd(make_record, with_patches, data, kind):
    record = make_record({"several": "scan", "public": "clean"}.get(kind, kind), 3)
    if kind == "several":
        record = with_patches(record)
    if kind == "public":
        given = {"kind": "images", "source": "streets/", "count": 4000, "sha256": "ab" * 32}
        record |= {"public": given, "repair": copy.deepcopy(TOLD)}
    places = [place for place in _places(record) if place != ("kind",)]
    for place in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=6)):
        holder = record
        for key in place[:-1]:
            try:
                holder = holder[key]
            except (KeyError, IndexError, TypeError):
                break
        else:
            if isinstance(holder, dict) and data.draw(st.booleans()):
                holder.pop(place[-1], None)
            elif isinstance(holder, dict) or (
                isinstance(holder, list) and holder and place[-1] == 0
            ):
                holder[place[-1]] = data.draw(ANYTHING)
    page = render(record)
    page.encode("utf-8")
    assert Outline(page).open == []


@SETTINGS
@given(
    values=st.lists(st.none() | st.floats(width=32), min_size=2, max_size=60),
    null=st.fixed_dictionaries(
        {
            "median": st.none() | st.floats(),
            "critical_suspicious": st.none() | st.floats(),
            "critical_found": st.none() | st.floats(),
        }
    ),
)
@example(
    values=[None, 0.0],
    null={"median": None, "critical_suspicious": None, "critical_found": 5e-324},
)
def test_any_numbers_make_a_picture_inside_its_frame(make_record, values, null):
    record = make_record("scan", len(values))
    record["statistic"] |= {"values": values, "null": null}
    page = render(record)
    is_sound(page)
    places = re.findall(r'(?:cx|x|x1|x2|width)="(-?[\d.e+-]+)%"', page)
    assert all(0 <= float(place) <= 100 for place in places)


@pytest.mark.parametrize("classes", [2, 3, 41, 200, 1000])
@pytest.mark.parametrize("kind", ["scan", "clean"])
def test_any_number_of_classes(make_record, with_patches, kind, classes):
    for verdict in VERDICTS:
        is_sound(render(make_record(kind, classes, verdict)))
    if kind == "scan":
        is_sound(render(with_patches(make_record(kind, classes))))


def test_titles_are_escaped_once(make_record):
    record = make_record("scan")
    record["model"]["classes"][5] = "salt & pepper"
    page = render(record)
    assert "salt &amp; pepper" in page
    assert "&amp;amp;" not in page
    assert "salt & pepper" in html_module.unescape(page)
