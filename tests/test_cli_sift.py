import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from bezoar import sifting
from bezoar.methods.rnp_unlearning import Unlearning


@pytest.fixture
def brief(monkeypatch):
    """Unlearning that only looks like it, where the result is not the point."""
    monkeypatch.setattr(sifting, "Unlearning", lambda: Unlearning(learning_rate=0.01, max_epochs=1))


@pytest.fixture(scope="module")
def heap(digits, tmp_path_factory):
    """A folder of images with file names; the ones called stamped-… carry the trigger."""
    folder = tmp_path_factory.mktemp("heap") / "log"
    folder.mkdir()
    others = torch.nonzero(digits.test.labels != digits.attack.target).flatten()[:60]
    images = digits.test.images[others]
    stamped = (digits.attack.stamp(images[:30].float() / 255) * 255).round().byte()
    for index, image in enumerate(torch.cat([stamped, images[30:]])):
        name = f"{'stamped' if index < 30 else 'plain'}-{index:02}.png"
        Image.fromarray(image[0].numpy()).save(folder / name)
    return folder


def sift(model_files, suspects, *more, model="planted"):
    clean = model_files / "clean.npz"
    return ("sift", model_files / f"{model}.toml", suspects, "--images", clean, *more)


def test_stamped_images_are_named_on_the_screen_in_the_csv_and_in_the_record(
    run, model_files, heap, tmp_path
):
    where, record = tmp_path / "heap.csv", tmp_path / "heap.json"
    code, out, err = run(*sift(model_files, heap, "--out", where, "--json", record))
    assert code == 1 and "Traceback" not in err
    rows = list(csv.DictReader(where.open()))
    assert [row["image"] for row in rows] == sorted(path.name for path in heap.iterdir())
    assert list(rows[0]) == ["image", "answer", "class", "score", "p", "flagged"]
    flagged = {row["image"] for row in rows if row["flagged"] == "1"}
    assert sum(name.startswith("stamped") for name in flagged) >= 15
    assert sum(name.startswith("plain") for name in flagged) <= 6
    assert all(row["class"] == "4" for row in rows if row["image"].startswith("stamped"))
    content = json.loads(record.read_text())
    assert content["kind"] == "sift" and content["suspects"]["source"] == str(heap)
    assert {row["name"] for row in content["flagged"]} == flagged
    assert content["model"]["file"].endswith("planted.safetensors")
    assert content["command"].startswith("bezoar")
    assert content["flagged"][0]["name"] in out and f"All images: {where}" in out.replace("\n", "")
    assert "suspicion, not a finding" in out.replace("\n", " ")
    assert f"and {len(flagged) - 10} more" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heap.csv", "heap.json"]


def test_the_clean_images_themselves_can_be_sifted(run, brief, model_files):
    code, out, _ = run(*sift(model_files, model_files / "clean.npz"))
    assert code == 0
    assert "300 of the images to sift are among the clean images, too" in out.replace("\n", " ")


def test_an_archive_has_no_names_and_its_order_stands_for_them(run, brief, model_files, tmp_path):
    where = tmp_path / "out.csv"
    code, out, _ = run(*sift(model_files, model_files / "test.npz", "--out", where, "--quiet"))
    assert code == 0 and out == ""
    assert [row["image"] for row in csv.DictReader(where.open())] == [str(i) for i in range(497)]


@pytest.mark.parametrize(("more", "code"), [((), 1), (("--fail-on", "never"), 0)])
def test_the_user_chooses_whether_it_fails(more, code, run, brief, model_files, monkeypatch):
    monkeypatch.setattr(sifting, "EXCESS", 1.0)
    assert run(*sift(model_files, model_files / "test.npz", "--quiet", *more))[0] == code


def test_sub_folders_of_the_heap_are_no_classes_and_give_their_names(
    run, brief, model_files, heap, tmp_path
):
    for place, name in (("=monday", "plain-30.png"), ("tuesday", "plain-31.png")):
        (tmp_path / "log" / place).mkdir(parents=True)
        (tmp_path / "log" / place / name).write_bytes((heap / name).read_bytes())
    where = tmp_path / "out.csv"
    names = [f"digit {k}" for k in range(10)]
    code, _, err = run(
        *sift(model_files, tmp_path / "log", "--out", where, "--quiet"), "--classes", *names
    )
    assert (code, err) == (0, "")
    rows = list(csv.DictReader(where.open()))
    # A spreadsheet would compute what begins with "=".
    assert [row["image"] for row in rows] == ["'=monday/plain-30.png", "tuesday/plain-31.png"]
    assert all(row["class"] == names[int(row["answer"])] for row in rows)


def test_bad_input_is_one_sentence_before_the_work(run, model_files, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(sifting, "unlearn", None)
    (tmp_path / "empty").mkdir()
    pixels = digits.clean.images.numpy()
    np.savez(tmp_path / "unlabelled.npz", images=pixels)
    np.savez(tmp_path / "large.npz", images=pixels.repeat(2, 2).repeat(2, 3))
    test = model_files / "test.npz"
    cases = [
        (sift(model_files, tmp_path / "empty"), "there are no images in"),
        (sift(model_files, tmp_path / "none"), "there is no file or folder"),
        (sift(model_files, tmp_path / "large.npz"), "16 pixels wide and 16 high"),
        (sift(model_files, test, "--level", "0"), "level is 0"),
        (sift(model_files, test, "--level", "0.001"), "at least 999"),
        (sift(model_files, test, "--limit", "12"), "too few to flag at level 0.05"),
        (sift(model_files, test, "--out", test), "never overwritten"),
        (sift(model_files, test, "--json", test), "never overwritten"),
        (sift(model_files, test, "--out", tmp_path / "none" / "a.csv"), "does not exist"),
    ]
    unlabelled = list(sift(model_files, test))
    unlabelled[-1] = tmp_path / "unlabelled.npz"
    cases.append((unlabelled, "sifting needs labelled images"))
    before = test.read_bytes()
    for arguments, said in cases:
        code, out, err = run(*arguments)
        assert (code, out) == (2, ""), said
        assert err.startswith("bezoar: ") and err.count("\n") == 1 and said in err, err
    assert test.read_bytes() == before
