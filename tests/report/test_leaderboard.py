import base64
import copy
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from leaderboards import make
from test_report import is_sound

from bezoar.bench.summary import REMOVED_ASR, REMOVED_DROP
from bezoar.errors import InputError
from bezoar.report import plane, words
from bezoar.report.leaderboard import render_board, write_leaderboard
from bezoar.report.leaderboard_cells import cells_of, scales_of
from bezoar.report.leaderboard_view import read_board, worst_of
from bezoar.report.published import published_of

SMALL = {
    "attacks": ("bad-nets", "blend", "wanet"),
    "methods": ("rnp", "anp", "ft", "clp"),
    "seeds": (0, 1),
    "controls": (5,),
    "missing": 0.05,
    "failing": 0.05,
}
NASTY = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}\u202e"


@pytest.fixture(scope="module")
def benchmark():
    return make(**SMALL)


@pytest.fixture(scope="module")
def page(benchmark):
    return render_board(*benchmark)


class Table(HTMLParser):
    """The rows of the tables of one class, as (attributes, text, whether it explains itself)."""

    def __init__(self, page, name):
        super().__init__()
        self.name, self.inside, self.cell, self.parts, self.rows = name, False, None, [], []
        self.told = False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "table":
            self.inside = self.name in (found.get("class") or "").split()
        elif self.inside and tag == "tr":
            self.rows.append((found, []))
        elif self.inside and tag in ("td", "th"):
            self.cell, self.parts, self.told = found, [], False
        elif self.cell is not None and found.get("title"):
            self.told = True

    def handle_data(self, data):
        if self.cell is not None:
            self.parts.append(data)

    def handle_endtag(self, tag):
        if tag in ("td", "th") and self.cell is not None:
            self.rows[-1][1].append((self.cell, "".join(self.parts).strip(), self.told))
            self.cell = None


def test_the_page_is_sound_and_tells_how_much_is_done(benchmark, page):
    summary, _ = benchmark
    outline = is_sound(page)
    counts = summary["counts"]
    assert sum(tag == "h1" for tag, _ in outline.tags) == 1
    assert f"{counts['done']} of {counts['planned']} runs are done" in outline.text
    assert (
        f"{counts['failed']} failed, and {counts['missing']} are still to be done" in outline.text
    )


def test_held_out_models_come_first_and_development_is_marked(page):
    outline = is_sound(page)
    assert outline.headings.index("Held-out models") < outline.headings.index("Development models")
    held_out, development = page.split("Development models")
    assert "No result." not in held_out and "No result." in development


def test_only_the_one_script_is_allowed_by_its_hash(page):
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert page.count("<script") == 1
    assert "src=" not in page.replace("http-equiv", "")


def test_text_of_strangers_is_escaped_everywhere(benchmark, tmp_path):
    summary, records = copy.deepcopy(benchmark)
    summary["title"] = NASTY
    summary["attacks"] = [NASTY, *summary["attacks"][1:]]
    for row in summary["rows"]:
        row["label"] += NASTY
        for value in (row.get("attacks"), row.get("worst_attack")):
            if value:
                value[NASTY] = value.get("bad-nets", 0)
    for run in summary["runs"]:
        run["label"] += NASTY
        run["model"] += NASTY
        run["attack"] = NASTY
        if "failure" in run:
            run["failure"] += NASTY
    records = dict(list(records.items())[::8])
    for record in records.values():
        record["label"] += NASTY
        record["decided"] = {NASTY: [NASTY, {NASTY: NASTY}]}
        record["config"]["method"][NASTY] = NASTY
        record["model"]["name"] = record["executor"] = record["device"] = NASTY
        if "failure" in record:
            record["failure"] |= {"message": NASTY, "traceback": NASTY}
    write_leaderboard(tmp_path, summary, records)
    for path in [tmp_path / "index.html", *(tmp_path / "runs").iterdir()]:
        written = path.read_text()
        outline = is_sound(written)
        tags = [tag for tag, _ in outline.tags]
        assert tags.count("script") == (path.name == "index.html")
        assert "img" not in tags and "iframe" not in tags
        assert not [name for _, found in outline.tags for name in found if name.startswith("on")]
        assert "{{ 7 * 7 }}" in written and "\u202e" not in written


def test_every_run_with_a_record_is_linked_and_every_link_leads_somewhere(benchmark, tmp_path):
    summary, records = benchmark
    write_leaderboard(tmp_path, summary, records)
    page = (tmp_path / "index.html").read_text()
    links = set(re.findall(r'href="(runs/[^"]*)"', page))
    assert links == {f"runs/{key}.html" for key in records}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {f"{k}.html" for k in records}
    for link in links:
        (back,) = set(re.findall(r'href="([^d][^"]*)"', (tmp_path / link).read_text()))
        assert ((tmp_path / link).parent / back).resolve() == tmp_path / "index.html"
    missing = [run for run in summary["runs"] if run["state"] == "missing"]
    assert page.count('class="run missing"') == len(missing) > 0


def test_no_cell_is_blank_and_every_dash_says_why(page):
    board, heat = Table(page, "board"), Table(page, "heat")
    cells = [cell for _, row in board.rows + heat.rows for cell in row]
    assert len(cells) > 400
    assert [cell for cell in cells if not cell[1]] == []
    dashes = [cell for cell in cells if cell[1].startswith("–")]
    assert dashes and all(told for _, _, told in dashes)
    assert all("data-value" not in found for found, _, _ in dashes)


def test_cells_hold_the_numbers_of_the_summary(benchmark, page):
    summary, _ = benchmark
    board = Table(page, "board")
    heads = [text for _, text, _ in board.rows[0][1]]
    by_name = {}
    for found, cells in board.rows[1:]:
        if "class" in found and len(cells) == len(heads):
            key = cells[0][0]["data-name"], found.get("data-images")
            by_name.setdefault(key, dict(zip(heads, cells, strict=True)))
    row = next(
        row for row in summary["rows"] if row["label"] == "rnp" and row["half"] == "held-out"
    )
    shown = by_name["rnp", str(row["images"])]
    der = row["der"]
    assert shown["DER"][1].startswith(words.in_percent(der["mean"]))
    assert words.span(der["low"], der["high"]) in shown["DER"][1]
    assert float(shown["DER"][0]["data-value"]) == pytest.approx(der["mean"])
    assert shown["Failed"][1] == str(row["failed"]) and shown["To do"][1] == str(row["missing"])
    assert shown["Removed"][1] == f"{row['removed']['count']} of {row['removed']['of']}"
    readings = json.loads(shown["ASR after"][0]["data-readings"])
    assert len(readings) == 1 + len(summary["attacks"])
    for attack, pair in zip(summary["attacks"], readings[1:], strict=True):
        assert pair[0][2] == pytest.approx(row["attacks"][attack]["asr_after"], abs=1e-6)
    assert readings[0][1][2] == pytest.approx(row["asr_after"]["worst"], abs=1e-6)


def test_the_worst_model_of_all_attacks_is_that_of_the_summary(benchmark):
    summary, _ = benchmark
    for row in summary["rows"]:
        group = [
            run
            for run in summary["runs"]
            if all(run[key] == row[key] for key in ("half", "images", "label"))
        ]
        worst = worst_of(group)
        for key, of in (("der", min), ("asr_after", max), ("acc_drop", max)):
            assert of(found[key] for found in worst.values()) == pytest.approx(row[key]["worst"])


def test_references_stand_on_top_and_controls_are_marked(benchmark, page):
    board = read_board(benchmark[0], benchmark[1])
    assert [row.label for row in board.halves[0].references] == ["no defense", "clean twin"]
    assert {row.role for row in board.halves[0].rows} == {"method", "control"}
    fixed = page.split('<tbody class="fixed">')[1].split("</tbody>")[0]
    assert "no defense" in fixed and "clean twin" in fixed and 'data-name="rnp"' not in fixed
    marked = re.findall(r'data-name="([^"]*)".*?<span class="tag">control</span>', page)
    assert marked and set(marked) == {"ft:recipe.epochs=5"}


def test_the_oracle_is_hatched_and_leaves_when_there_is_none(benchmark, page):
    assert re.search(r'<th[^>]*title="No result[^>]*class="number oracle"', page)
    summary = copy.deepcopy(benchmark[0])
    for row in summary["rows"]:
        row.pop("oracle", None)
    board = read_board(summary, ())
    assert all(column.name != "Oracle" for column in board.halves[0].columns)
    assert all(
        [cell.column for cell in row.cells] == board.halves[0].columns[1:]
        for row in board.halves[0].rows
    )


def test_a_row_without_an_oracle_says_why(benchmark):
    summary = copy.deepcopy(benchmark[0])
    nothing_done = next(row for row in summary["rows"] if "oracle" in row)
    del nothing_done["oracle"]
    nothing_done["models"] = 0
    board = read_board(summary, ())
    rows = [row for half in board.halves for row in half.rows]
    reasons = {c.why for row in rows for c in row.cells if c.column.name == "Oracle"}
    assert "no run gave the oracle a choice" in reasons
    assert "no run on a backdoored model is done" in reasons


def test_what_failed_is_listed_with_its_reason(benchmark, page):
    failed = [run for run in benchmark[0]["runs"] if run["state"] == "failed"]
    section = page.split('id="failures"')[1].split("</section>")[0]
    assert failed and section.count('<a href="runs/') == len(failed)
    assert "rnp found no unit that it could prune" in section


def test_published_results_stand_beside_ours(benchmark, page):
    section = page.split('id="published"')[1].split("</section>")[0]
    assert "WRN-16-1, 2,500 images" in section and "85.7 → 82.1" in section
    known = {
        (run["label"], run["images"], run["model"])
        for run in benchmark[0]["runs"]
        if run["state"] == "done" and run["role"] == "method" and run["reported"]
    }
    assert section.count(">measured<") == len(known) > 4


@pytest.mark.parametrize("status", ["weak", "natural", None])
def test_only_models_that_count_stand_beside_published_results(status, benchmark):
    runs = [run | {"status": status} for run in benchmark[0]["runs"]]
    assert published_of(benchmark[0]["runs"], ()) and published_of(runs, ()) == []


def whys(row, **changes):
    """Column → why it is a dash."""
    cells = cells_of(row | changes, (), {}, scales_of([]))
    return {cell.column.name: cell.why for cell in cells if cell.text == words.DASH}


def test_the_reasons_of_dashes_are_true():
    row = {"label": "rnp", "role": "method", "images": 500, "failed": 2}
    found = whys(row)  # its own runs failed, whatever the others did
    assert found["DER"] == found["Against tuning"] == "no run on a backdoored model is done"
    assert found["Clean models"] == "no run on a clean model is done"
    assert whys(row, same_compute=None)["Against tuning"].startswith("no fine-tuning of the same")
    twin = whys(row, label="clean twin", role="reference", images=0)
    assert twin["DER"] == "no backdoored model is measured together with its twin"
    assert whys(row, label="no defense", role="reference")["DER"] == found["DER"]


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ((1, 1, 0, 0), "The one run is done."),
        ((2, 2, 0, 0), "All 2 runs of the grid are done."),
        ((1, 0, 1, 0), "0 of 1 run is done, 1 failed, and 0 are still to be done."),
        ((3, 1, 1, 1), "1 of 3 runs is done, 1 failed, and 1 is still to be done."),
    ],
)
def test_one_run_is_done_and_two_are(counts, sentence):
    names = ("planned", "done", "failed", "missing")
    summary = {"counts": dict(zip(names, counts, strict=True))}
    assert read_board(summary, ()).sentence == sentence


def test_the_corner_of_the_plane_is_what_counts_as_removed():
    assert (plane.CORNER_ASR, plane.CORNER_DROP) == (REMOVED_ASR, REMOVED_DROP)


def test_a_benchmark_that_has_not_begun_has_a_page():
    summary, _ = make(**(SMALL | {"missing": 1.1}))
    summary["runs"] = [run | {"state": "missing"} for run in summary["runs"]]
    outline = is_sound(render_board(summary))
    assert "still to be done" in outline.text
    is_sound(render_board({"title": "Nothing", "rows": [], "runs": [], "attacks": []}))


def test_a_single_model_and_seed_need_no_interval():
    summary, records = make(**(SMALL | {"attacks": ("wanet",), "seeds": (0,)}))
    summary["rows"] = [
        row
        | {key: row[key] | {"low": None, "high": None} for key in ("der", "acc_drop") if key in row}
        for row in summary["rows"]
    ]
    text = is_sound(render_board(summary, records)).text
    assert "one model" in text and "a spread needs two seeds" in text


def test_addresses_that_are_no_file_names_are_refused(benchmark, tmp_path):
    summary, records = benchmark
    record = next(iter(records.values()))
    for key in ("../../evil", "a/b", "", "x" * 100, "a\n"):
        with pytest.raises(InputError, match="cannot be the name of a page"):
            write_leaderboard(tmp_path, summary, {key: record})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_is_told(benchmark, tmp_path):
    with pytest.raises(InputError, match="cannot be made"):
        write_leaderboard(tmp_path / "missing", *benchmark)
