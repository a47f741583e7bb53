"""The page in a real browser: nothing is loaded, nothing complains, nothing sticks out."""

import shutil

import pytest
import torch
from public_methods import TOLD
from torch import nn

from bezoar.classifier import Classifier
from bezoar.images import ImageSet
from bezoar.report import render, write
from bezoar.report.contact_sheet import contact_sheet

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the path")

PAGES = [
    ("scan", 10),
    ("several", 10),
    ("scan", 2),
    ("votes", 43),
    ("scan", 1000),
    ("clean", 43),
    ("no images", 10),
    ("public images", 43),
    ("demo", 10),
]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        yield browser
        browser.close()


@pytest.fixture
def address(make_record, with_patches, picture, tmp_path, request):
    kind, classes = request.param
    several = kind == "several"
    votes = kind == "votes"
    alone = kind in ("no images", "public images")
    record = make_record("scan" if several or votes else "clean" if alone else kind, classes)
    if alone:
        unknown = ("images", "scan", "rescan", "before", "after", "agreement", "accuracy_drop")
        record |= dict.fromkeys(unknown) | {"judged_on": "no images"}
        share = {"value": 0.9, "low": 0.88, "high": 0.91, "count": 2000}
        moved = {"before": share, "after": share}
        record["repair"] = {"agreement": {"synthetic": share}, "insensitivity": moved}
    if kind == "public images":
        search = TOLD["inversion"] | {"per_class": list(range(classes)), "short": [0, 1, 2]}
        record["repair"] = TOLD | {"inversion": search}
        record["public"] = {"kind": "generator", "source": "/generators/" + "deep/" * 40 + "g.toml"}
    if several:
        record = with_patches(record)
    if votes:
        counts = [[k, (k + 1) % classes, 5] for k in range(classes)]
        record["evidence"][0]["votes"] = {"classes": classes, "counts": counts}
    record["model"]["classes"][0] = "a-name-without-any-space-" * 8 + "<script>alert(1)</script>"
    record["model"]["file"] = "/models/" + "deep/" * 40 + "model.safetensors"
    record["command"] += " --cache /" + "x" * 300
    path = tmp_path / "report.html"
    write(path, render(record, [picture]))
    return path.as_uri()


@pytest.mark.parametrize("address", PAGES, indirect=True, ids=lambda page: f"{page[0]}-{page[1]}")
def test_page_is_quiet_self_contained_and_fits(browser, address):
    for scheme, width in [("light", 1200), ("light", 390), ("dark", 1200), ("dark", 390)]:
        page = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=True
        )
        complaints, requests = [], []
        page.on("console", lambda message, told=complaints: told.append(message.text))
        page.on("pageerror", lambda error, told=complaints: told.append(str(error)))
        page.on("dialog", lambda dialog, told=complaints: told.append(dialog.message))
        page.on("request", lambda request, seen=requests: seen.append(request.url))
        page.goto(address)
        for summary in page.locator("summary").all():
            summary.click()
        facts = page.evaluate(
            """() => ({
                width: document.documentElement.scrollWidth,
                paper: getComputedStyle(document.body).backgroundColor,
                charts: [...document.querySelectorAll('.plot > svg')].map(
                    (svg) => svg.getBoundingClientRect().width),
                images: [...document.images].every((image) => image.naturalWidth > 0),
                scripts: document.scripts.length,
            })"""
        )
        page.close()
        assert complaints == []
        assert [url for url in requests if url != address and not url.startswith("data:")] == []
        assert facts["width"] <= width
        assert facts["charts"]
        assert min(facts["charts"]) > 80
        assert facts["images"]
        assert facts["scripts"] == 0
        red = int(facts["paper"].removeprefix("rgb(").split(",")[0])
        assert red > 200 if scheme == "light" else red < 60


@pytest.mark.parametrize("address", [("demo", 10)], indirect=True, ids=["demo"])
def test_page_prints_on_paper_even_from_a_dark_screen(browser, address):
    page = browser.new_page(viewport={"width": 700, "height": 900}, color_scheme="dark")
    page.goto(address)
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="print", color_scheme="dark")
    facts = page.evaluate(
        """() => ({
            paper: getComputedStyle(document.body).backgroundColor,
            width: document.documentElement.scrollWidth,
        })"""
    )
    page.close()
    assert facts["paper"] == "rgb(255, 255, 255)"
    assert facts["width"] <= 700


@pytest.mark.parametrize("classes", [10, 43, 1000])
def test_a_contact_sheet_fits(browser, make_record, tmp_path, classes):
    drawn = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (600, 1, 8, 8), dtype=torch.uint8, generator=drawn)
    images = ImageSet(pixels, torch.randint(0, classes - 1, (600,), generator=drawn))
    names = [f"class {k} " + "without-any-space" * (k % 9) for k in range(classes)]
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    classifier = Classifier(network, mean=0.5, std=0.2, classes=names, input_size=(8, 8))
    record = make_record("scan", classes) | {"kind": "synthesize", "per_class": [1] * classes}
    path = tmp_path / "sheet.html"
    write(path, render(record, sheet=contact_sheet(classifier, images)))
    for scheme, width in [("light", 1200), ("light", 390), ("dark", 1200), ("dark", 390)]:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.goto(path.as_uri())
        facts = page.evaluate(
            """() => ({
                width: document.documentElement.scrollWidth,
                height: document.documentElement.scrollHeight,
                sides: [...document.images].map((image) => image.getBoundingClientRect().width),
                rendering: getComputedStyle(document.images[0]).imageRendering,
            })"""
        )
        page.close()
        assert facts["width"] <= width and facts["height"] < 14_000
        assert min(facts["sides"]) >= 30 and max(facts["sides"]) <= 96
        assert facts["rendering"] == "pixelated"
