"""The leaderboard in a real browser: it sorts, it chooses, and it can be read without a script."""

import re
import shutil

import pytest
from leaderboards import make

from bezoar.report import words
from bezoar.report.leaderboard import write_leaderboard

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the path")

LONG = "rnp:" + "a-setting-without-any-space=" * 8 + "<script>alert(1)</script>"
FIRST = "table.board >> nth=0"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def summary_and_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("board")
    summary, records = make(
        attacks=("bad-nets", "blend", "wanet", "an-attack-with-a-name-that-is-much-too-long"),
        methods=("rnp", "anp", "ft", "nad", LONG, "i-bau"),
        seeds=(0,),
        controls=(5,),
        missing=0.02,
        failing=0.05,
    )
    for row in summary["rows"]:
        if row["label"] == "nad":
            row["attacks"].pop("blend")
            row["seconds"] = 123456.7
    write_leaderboard(folder, summary, records)
    return summary, folder


@pytest.fixture
def open_page(browser, summary_and_folder):
    opened = []

    def go(name="index.html", width=1280, **more):
        page = browser.new_page(viewport={"width": width, "height": 900}, **more)
        page.complaints, page.requests = [], []
        for event, of in (("console", "text"), ("dialog", "message")):
            page.on(event, lambda told, of=of: page.complaints.append(getattr(told, of)))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto((summary_and_folder[1] / name).as_uri())
        opened.append(page)
        return page

    yield go
    for page in opened:
        page.close()


def column(page, name):
    """(method, text) of every row that is sorted and visible, from the top."""
    return page.locator(FIRST).evaluate(
        """(table, name) => {
            const heads = [...table.tHead.rows[0].cells].map((head) => head.textContent);
            return [...table.querySelectorAll("tbody.sorted > tr:not([hidden])")].map((row) => {
                const cell = row.cells[heads.indexOf(name)];
                const part = cell.querySelector(".shown, .label");
                return [row.cells[0].dataset.name, part.firstChild.textContent];
            });
        }""",
        name,
    )


def number(text):
    return float(re.sub(r"[<\s,]", "", text).replace("\u2212", "-"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 420])
def test_the_index_is_quiet_and_fits(open_page, width, scheme):
    page = open_page(width=width, color_scheme=scheme)
    for summary in page.locator(".board summary").all()[:6]:
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.complaints == []
    assert [url for url in page.requests if not url.endswith("/index.html")] == ["data:,"] * (
        len(page.requests) - 1
    )
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(paper.removeprefix("rgb(").split(",")[0])
    assert red > 200 if scheme == "light" else red < 60


@pytest.mark.parametrize("width", [1280, 420])
def test_the_pages_of_runs_fit(open_page, summary_and_folder, width):
    runs = summary_and_folder[0]["runs"]
    for state, label in (("done", "rnp"), ("done", LONG), ("failed", "anp")):
        run = next(r for r in runs if r["state"] == state and r["label"] == label)
        page = open_page(f"runs/{run['key']}.html", width=width)
        page.locator("summary").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.complaints == []


@pytest.mark.parametrize("name", ["DER", "ACC drop", "Seconds", "Against tuning", "Failed"])
def test_a_click_sorts_the_best_first_and_another_turns_it(open_page, name):
    page = open_page()
    before = column(page, name)
    button = page.locator(FIRST).locator("thead button").get_by_text(name, exact=True)
    head = button.locator("xpath=..")
    assert head.get_attribute("aria-sort") is None
    best = head.get_attribute("data-best")
    for turn in (best, {"ascending": "descending", "descending": "ascending"}[best]):
        button.click()
        assert head.get_attribute("aria-sort") == turn
        after = column(page, name)
        assert sorted(after) == sorted(before)
        known = [number(text) for _, text in after if text != "–"]
        assert known == sorted(known, reverse=turn == "descending")
        assert all(text == "–" for _, text in after[len(known) :])
        on_top = page.locator(FIRST).locator("tbody").first.locator("tr")
        assert on_top.evaluate_all("rows => rows.map(row => row.cells[0].dataset.name)") == [
            "no defense",
            "clean twin",
        ]


def test_sorting_works_from_the_keyboard_and_by_name(open_page):
    page = open_page()
    page.locator(FIRST).locator("thead button").first.focus()
    page.keyboard.press("Enter")
    names = [name for name, _ in column(page, "Method")]
    assert names == sorted(names)
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.locator(f"{FIRST} >> th[aria-sort]").text_content() == "Images"


def test_one_attack_shows_its_means_and_one_budget_its_rows(open_page, summary_and_folder):
    page, rows = open_page(), summary_and_folder[0]["rows"]
    ours = [row for row in rows if row["half"] == "held-out" and row["role"] != "reference"]
    page.select_option("[name=attack]", label="blend")
    for name, key in (("DER", "der"), ("ASR after", "asr_after"), ("ACC drop", "acc_drop")):
        expected = [
            (row["label"], words.in_percent(row["attacks"].get("blend", {}).get(key)))
            for row in ours
        ]
        assert [tuple(found) for found in column(page, name)] == expected
    nads = [text for label, text in column(page, "DER") if label == "nad"]
    assert set(nads) == {"–"}
    assert "are those of blend" in page.locator("[role=status]").text_content()
    page.locator(FIRST).locator("thead button").get_by_text("DER", exact=True).click()
    assert {label for label, _ in column(page, "DER")[-2:]} == {"nad"}
    page.select_option("[name=images]", "500")
    assert {text for _, text in column(page, "Images")} == {"500"}
    assert page.locator("figure[data-images]:visible").count() == 2  # one a half
    page.select_option("[name=attack]", "0")
    page.select_option("[name=images]", "")
    means = sorted((row["label"], words.in_percent(row["der"]["mean"])) for row in ours)
    assert sorted(tuple(found) for found in column(page, "DER")) == means


def test_the_worst_case_takes_the_place_of_the_mean_and_its_interval(open_page, summary_and_folder):
    page, rows = open_page(), summary_and_folder[0]["rows"]
    ours = [row for row in rows if row["half"] == "held-out" and row["role"] != "reference"]
    page.get_by_label("worst case").check()
    for name, key in (("DER", "der"), ("ASR after", "asr_after"), ("RA after", "ra_after")):
        expected = [(row["label"], words.in_percent(row[key]["worst"])) for row in ours]
        assert [tuple(found) for found in column(page, name)] == expected
    assert "worst of 8" in page.locator(FIRST).text_content()
    page.get_by_label("mean").check()
    assert "worst of" not in page.locator(FIRST).text_content()


def test_everything_can_be_read_without_a_script(open_page, summary_and_folder):
    page = open_page(java_script_enabled=False)
    assert page.locator(".lens").is_hidden()
    assert page.locator("thead button").count() == 0
    board = page.locator("table.board").first
    for row in summary_and_folder[0]["rows"][:5]:
        assert words.in_percent(row["der"]["mean"]) in board.text_content()
    board.locator("summary").first.click()
    link = board.locator("details[open] a").first
    assert link.is_visible()
    link.click()
    assert page.locator("h1").text_content() == "no defense"
    page.locator("header a").click()
    assert page.url.endswith("/index.html")
