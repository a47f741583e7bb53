"""The contact sheet: which images of which classes, how many, and in what words."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.report import render
from bezoar.report.contact_sheet import contact_sheet


def brightest(classes, side=4):
    """The logit of each class is the brightness, times a number that grows with the class."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(side * side, classes, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.arange(1.0, classes + 1)[:, None].expand(-1, side * side))
    return Classifier(
        network,
        mean=0.0,
        std=1.0,
        classes=[f"class {k}" for k in range(classes)],
        input_size=(side, side),
    )


def grey(levels, side=4):
    """One even image for each level."""
    return torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, side, side)


def levels(row):
    """The levels of the images of a row."""
    return [int(decoded(image)[0, 0]) for image in row.thumbnails]


def decoded(thumbnail):
    content = base64.b64decode(thumbnail.source.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(content)))


def test_the_surest_images_of_each_class_come_first():
    # The brighter, the surer of the last class, and the less sure of the others.
    images = ImageSet(grey([10, 200, 60, 10, 0, 120]), torch.tensor([2, 2, 2, 0, 0, 0]))
    sheet = contact_sheet(brightest(3), images, per_class=2)
    assert [row.name for row in sheet.rows] == ["class 0", "class 1", "class 2"]
    assert [row.count for row in sheet.rows] == ["3 images", "no image", "3 images"]
    assert levels(sheet.rows[2]) == [200, 60] and levels(sheet.rows[0]) == [0, 10]
    assert sheet.rows[1].thumbnails == [] and not sheet.compact
    assert sheet.note == (
        "Of each class, up to 2 images: those that the network is surest of. 1 class has no image."
    )
    first = sheet.rows[2].thumbnails[0]
    assert (
        first.alt == "class 2, image 1" and first.enlarged and (first.width, first.height) == (4, 4)
    )


def test_very_sure_images_are_still_told_apart():
    images = ImageSet(grey([250, 255, 240]), torch.tensor([1, 1, 1]))
    sheet = contact_sheet(brightest(2, side=2), ImageSet(images.images[..., :2, :2], images.labels))
    assert levels(sheet.rows[1]) == [255, 250, 240]
    assert sheet.note.startswith("Of each class, up to 8 images")


@pytest.mark.parametrize(("classes", "compact"), [(20, False), (21, True), (100, True)])
def test_many_classes_become_a_grid_of_fewer_images(classes, compact):
    labels = torch.arange(classes).repeat(6)
    images = ImageSet(grey([100] * len(labels)), labels)
    sheet = contact_sheet(brightest(classes), images)
    assert sheet.compact == compact and len(sheet.rows) == classes
    assert {len(row.thumbnails) for row in sheet.rows} == {4 if compact else 6}
    assert "classes are shown" not in sheet.note and "no image" not in sheet.note
    one = contact_sheet(brightest(classes), images, per_class=1)
    assert {len(row.thumbnails) for row in one.rows} == {1}
    assert one.note == "Of each class, the image that the network is surest of."


def test_of_very_many_classes_those_with_most_images_are_shown():
    labels = torch.cat([torch.arange(900), torch.arange(150, 270).repeat_interleave(2)])
    images = ImageSet(torch.randint(0, 255, (len(labels), 3, 64, 64), dtype=torch.uint8), labels)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000))
    classifier = Classifier(network, mean=[0.5] * 3, std=[0.2] * 3, input_size=(64, 64))
    sheet = contact_sheet(classifier, images)
    assert [row.name for row in sheet.rows] == [str(k) for k in range(150, 250)]
    assert "100 of 1,000 classes are shown, those with the most images." in sheet.note
    assert "100 classes have no image." in sheet.note
    shown = sheet.rows[0].thumbnails[0]
    assert (shown.width, shown.height) == (48, 48) and not shown.enlarged
    page = render({"kind": "synthesize"}, sheet=sheet)
    assert page.count("<img") == 300 and len(page) < 4_000_000


def test_an_odd_class_name_stays_text():
    classifier = brightest(2)
    classifier._classes = ("<script>alert(1)</script>", "a\u202eb")
    images = ImageSet(grey([1, 2]), torch.tensor([0, 1]))
    page = render({"kind": "synthesize"}, sheet=contact_sheet(classifier, images))
    assert "<script>" not in page and "&lt;script&gt;" in page and "\u202e" not in page


@pytest.mark.parametrize("per_class", [0, 17, -3])
def test_a_number_out_of_range_is_refused(per_class):
    images = ImageSet(grey([1]), torch.tensor([0]))
    with pytest.raises(InputError, match=f"{per_class} images of each class.*expected 1 to 16"):
        contact_sheet(brightest(2), images, per_class=per_class)


def test_images_need_labels_of_the_classifier():
    with pytest.raises(InputError, match="a contact sheet needs labelled images"):
        contact_sheet(brightest(2), ImageSet(grey([1])))
    with pytest.raises(InputError, match="label 5"):
        contact_sheet(brightest(2), ImageSet(grey([1]), torch.tensor([5])))


def test_a_clean_page_shows_it_only_where_the_method_made_images(make_record):
    record = make_record("clean")
    sheet = contact_sheet(brightest(2), ImageSet(grey([1, 2]), torch.tensor([0, 1])))
    heading = "Images that the repair was made with"
    assert heading not in render(record)
    page = render(record, sheet=sheet)
    assert page.index("What was changed") < page.index(heading) < page.index("scanned again")
    assert "They are not its training images" in page


@pytest.mark.parametrize("odd", [7, "x", [], {}, None, [None, "a"]])
def test_a_broken_record_of_synthesize_is_still_a_page(odd):
    names = ("settings", "per_class", "missing", "certainty", "divergence", "sentence", "notices")
    page = render({"kind": "synthesize", **dict.fromkeys(names, odd)})
    assert "What the network takes for its classes" in page and "The record holds no images" in page
