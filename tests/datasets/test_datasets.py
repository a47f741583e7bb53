"""Data sets by name: the same images from every source, and the truth about where they are from."""

import io
import json
import os
import sys
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bezoar.datasets import datasets, facts, open_dataset, read_digits, sources
from bezoar.demo import load_digits
from bezoar.errors import InputError
from bezoar.images import ImageSet

NAMES = [f"class {n}" for n in range(10)]


def pictures(count, side=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def encode(pixels, kind="PNG"):
    buffer = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def write(path, pixels, labels, *, kind="PNG", names=NAMES, **columns):
    cells = [{"bytes": encode(p, kind), "path": f"{i}"} for i, p in enumerate(pixels)]
    table = pa.table({"image": cells, "label": list(labels)} | columns)
    if names is not None:
        features = {"label": {"_type": "ClassLabel", "names": names}}
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def rows(images):
    return images.images.permute(0, 2, 3, 1).numpy()


@pytest.fixture(autouse=True)
def nothing_at_hand(monkeypatch, tmp_path):
    """No folder, no packages that fetch, and a cache and home of the test's own."""
    monkeypatch.delenv("BEZOAR_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setitem(sys.modules, "datasets", None)

    def absent():
        raise InputError("torchvision is needed") from ImportError("No module named 'torchvision'")

    monkeypatch.setattr(sources, "import_torchvision", absent)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A folder with 6 training images in two files and 4 test images of CIFAR-10."""
    where = tmp_path / "data"
    train, labels = pictures(6), [0, 1, 2, 9, 0, 1]
    for part in range(2):
        rows_of_it = slice(3 * part, 3 * part + 3)
        path = where / "cifar10" / f"train-0000{part}-of-00002.parquet"
        write(path, train[rows_of_it], labels[rows_of_it], kind="WEBP")
    write(where / "cifar10" / "test.parquet", pictures(4, seed=1), [3, 2, 1, 0], kind="WEBP")
    monkeypatch.setenv("BEZOAR_DATA", str(where))
    return where


def test_both_splits_from_the_folder(folder, tmp_path):
    train = open_dataset("cifar10", "train", cache=tmp_path / "cache")
    assert np.array_equal(rows(train), pictures(6))
    assert train.labels.tolist() == [0, 1, 2, 9, 0, 1]
    assert train.classes == tuple(NAMES)
    assert train.notices == ()
    test = open_dataset("cifar10", "test", cache=tmp_path / "cache")
    assert np.array_equal(rows(test), pictures(4, seed=1))
    assert test.labels.tolist() == [3, 2, 1, 0]


def counting(monkeypatch):
    """Counts how often images are decoded."""
    calls = []
    original = ImageSet.from_parquet.__func__

    def from_parquet(cls, *arguments, **options):
        calls.append(arguments)
        return original(cls, *arguments, **options)

    monkeypatch.setattr(ImageSet, "from_parquet", classmethod(from_parquet))
    return calls


def test_what_was_decoded_once_is_mapped_the_second_time(folder, tmp_path, monkeypatch):
    calls = counting(monkeypatch)
    first = open_dataset("cifar10", "train", cache=tmp_path / "cache")
    second = open_dataset("cifar10", "train", cache=tmp_path / "cache")
    assert len(calls) == 1
    assert second.sha256() == first.sha256()
    assert (second.classes, second.notices) == (first.classes, ())
    second.images.zero_()  # private to this process
    assert open_dataset("cifar10", "train", cache=tmp_path / "cache").sha256() == first.sha256()
    assert len(calls) == 1
    assert not list((tmp_path / "cache" / "decoded").glob(".part-*"))


def test_the_default_cache_is_in_the_home_folder(folder, tmp_path):
    open_dataset("cifar10", "test")
    assert len(list((tmp_path / "home/.cache/bezoar/decoded").glob("cifar10-test-*"))) == 1


def test_a_file_of_another_time_or_content_is_decoded_again(folder, tmp_path, monkeypatch):
    calls = counting(monkeypatch)
    path = folder / "cifar10" / "test.parquet"
    open_dataset("cifar10", "test", cache=tmp_path / "cache")
    os.utime(path, ns=(1, 1))
    open_dataset("cifar10", "test", cache=tmp_path / "cache")
    assert len(calls) == 2
    write(path, pictures(4, seed=2), [3, 2, 1, 0], kind="WEBP")
    os.utime(path, ns=(1, 1))
    after = open_dataset("cifar10", "test", cache=tmp_path / "cache")
    assert np.array_equal(rows(after), pictures(4, seed=2))


def flip_a_bit(entry):
    content = bytearray((entry / "images.npy").read_bytes())
    content[-1] ^= 1
    (entry / "images.npy").write_bytes(content)


DAMAGES = {
    "a flipped bit": flip_a_bit,
    "images cut short": lambda entry: os.truncate(entry / "images.npy", 500),
    "images empty": lambda entry: (entry / "images.npy").write_bytes(b""),
    "labels missing": lambda entry: (entry / "labels.npy").unlink(),
    "facts are no JSON": lambda entry: (entry / "facts.json").write_text("{"),
    "facts are a list": lambda entry: (entry / "facts.json").write_text("[]"),
    "facts without a hash": lambda entry: (entry / "facts.json").write_text('{"labelled": true}'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_cache_is_said_and_replaced(folder, tmp_path, damage):
    cache = tmp_path / "cache"
    good = open_dataset("cifar10", "test", cache=cache)
    (entry,) = (cache / "decoded").iterdir()
    damage(entry)
    again = open_dataset("cifar10", "test", cache=cache)
    assert again.sha256() == good.sha256()
    assert len(again.notices) == 1 and "damaged" in again.notices[0]
    assert str(entry) in again.notices[0]
    healed = open_dataset("cifar10", "test", cache=cache)
    assert healed.sha256() == good.sha256() and healed.notices == ()


def test_a_cache_that_cannot_be_written_is_said_and_the_images_are_there(folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    images = open_dataset("cifar10", "test", cache=tmp_path / "file" / "cache")
    assert np.array_equal(rows(images), pictures(4, seed=1))
    assert len(images.notices) == 1 and "could not be kept" in images.notices[0]


def test_a_process_that_was_slower_uses_what_is_there(folder, tmp_path, monkeypatch):
    """Two processes decode the same files; the second finds the entry when it wants to rename."""
    cache = tmp_path / "cache"
    original = ImageSet.from_parquet.__func__
    monkeypatch.setattr(
        ImageSet,
        "from_parquet",
        classmethod(lambda cls, *a, **o: (overtake(), original(cls, *a, **o))[1]),
    )

    def overtake():
        monkeypatch.setattr(ImageSet, "from_parquet", classmethod(original))
        open_dataset("cifar10", "test", cache=cache)

    images = open_dataset("cifar10", "test", cache=cache)
    assert np.array_equal(rows(images), pictures(4, seed=1)) and images.notices == ()
    assert [entry.name[:7] for entry in (cache / "decoded").iterdir()] == ["cifar10"]


def test_signs_can_be_cut_to_their_box(tmp_path, monkeypatch):
    pixels = pictures(2)
    boxes = [[0.0, 0.0, 16.0, 16.0], [8.0, 8.0, 24.0, 24.0]]
    write(tmp_path / "d/gtsrb/test.parquet", pixels, [0, 42], names=list("abc"), roi=boxes)
    monkeypatch.setenv("BEZOAR_DATA", str(tmp_path / "d"))
    with pytest.raises(InputError, match="label 42"):  # three names, and 43 classes
        open_dataset("gtsrb", "test", cache=tmp_path)
    names = [f"sign {n}" for n in range(43)]
    write(tmp_path / "d/gtsrb/test.parquet", pixels, [0, 42], names=names, roi=boxes)
    whole = open_dataset("gtsrb", "test", cache=tmp_path)
    cut = open_dataset("gtsrb", "test", box_column="roi", cache=tmp_path)
    assert np.array_equal(rows(whole), pixels)
    resized = Image.fromarray(pixels[1]).resize((32, 32), Image.BICUBIC, box=tuple(boxes[1]))
    assert np.array_equal(rows(cut)[1], np.asarray(resized))
    again = open_dataset("gtsrb", "test", box_column="roi", cache=tmp_path)
    assert again.sha256() == cut.sha256() != whole.sha256()
    with pytest.raises(InputError, match="no column 'box'"):
        open_dataset("gtsrb", "test", box_column="box", cache=tmp_path)


def tiny(path, count=30, seed=0):
    pixels = pictures(count, side=64, seed=seed)
    write(path, pixels, [n % 3 for n in range(count)], names=[f"n{n:08}" for n in range(200)])
    return pixels


def test_tiny_imagenet_is_divided_where_only_its_validation_part_is_there(tmp_path, monkeypatch):
    pixels = tiny(tmp_path / "d/tinyimagenet/val.parquet")
    monkeypatch.setenv("BEZOAR_DATA", str(tmp_path / "d"))
    train, test = (open_dataset("tiny-imagenet", split, cache=tmp_path) for split in SPLITS)
    assert train.labels.bincount().tolist() == [8, 8, 8]
    assert test.labels.bincount().tolist() == [2, 2, 2]
    together = sorted(image.tobytes() for part in (train, test) for image in rows(part))
    assert together == sorted(image.tobytes() for image in pixels)
    assert "only its validation part is at hand" in train.notices[0]
    assert "24 are for training and 6 for testing" in test.notices[0]
    tiny(tmp_path / "d/tinyimagenet/train-0.parquet", seed=1)
    assert len(open_dataset("tiny-imagenet", "train", cache=tmp_path)) == 30
    whole = open_dataset("tiny-imagenet", "test", cache=tmp_path)
    assert len(whole) == 30 and whole.notices == ()


SPLITS = ("train", "test")


def test_cifar10_is_never_divided(folder):
    for file in (folder / "cifar10").glob("train*"):
        file.unlink()
    with pytest.raises(InputError, match=r"has no cifar10/train-\*\.parquet"):
        open_dataset("cifar10", "train")


def test_digits_of_the_package_are_divided():
    train, test = (open_dataset("digits", split) for split in SPLITS)
    assert (len(train), len(test), train.shape) == (1438, 359, (1, 8, 8))
    together = sorted(image.tobytes() for part in (train, test) for image in rows(part))
    assert together == sorted(image.tobytes() for image in rows(read_digits()))
    assert train.sha256() == open_dataset("digits", "train").sha256()
    with pytest.raises(InputError, match="digits has no column"):
        open_dataset("digits", "test", box_column="roi")


def test_the_demo_draws_the_same_digits_as_before_they_moved():
    hashes = [part.sha256()[:12] for part in load_digits(seed=0)]
    assert hashes == ["4e77a3a3ea0f", "6724922baa32", "1214cb9582e0"]


class FakeTable:
    """As much of a ``datasets.Dataset`` as is used, with the behaviour of the real one."""

    def __init__(self, columns, decoded=True, cache_files=()):
        self.columns = columns
        self.decoded = decoded
        self.column_names = list(columns)
        self.cache_files = [{"filename": str(file)} for file in cache_files]
        feature = type("ClassLabel", (), {"names": NAMES})()
        self.features = {"label": feature}

    def select_columns(self, names):
        return FakeTable({name: self.columns[name] for name in names}, self.decoded)

    def cast_column(self, name, feature):
        assert feature == "not decoded"
        return FakeTable(self.columns, decoded=False)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name):
        return self.columns[name]

    def __iter__(self):
        assert not self.decoded, "images were decoded by the library"
        return (
            dict(zip(self.columns, row, strict=True))
            for row in zip(*self.columns.values(), strict=True)
        )


def install_hub(monkeypatch, load):
    library = ModuleType("datasets")
    library.load_dataset = load
    library.Image = lambda decode: "decoded" if decode else "not decoded"
    monkeypatch.setitem(sys.modules, "datasets", library)


def test_from_the_hub(monkeypatch, tmp_path):
    asked, pixels = [], pictures(3, side=48)
    (tmp_path / "file.arrow").write_bytes(b"as the library keeps it")

    def load_dataset(name, split):
        asked.append((name, split))
        cells = [{"bytes": encode(p), "path": None} for p in pixels]
        columns = {"img": cells, "label": [5, 0, 9]}
        return FakeTable(columns, cache_files=[tmp_path / "file.arrow"])

    install_hub(monkeypatch, load_dataset)
    images = open_dataset("cifar10", "test", cache=tmp_path)
    assert asked == [("uoft-cs/cifar10", "test")]
    stretched = Image.fromarray(pixels[2]).resize((32, 32), Image.BILINEAR)
    assert np.array_equal(rows(images)[2], np.asarray(stretched))
    assert images.labels.tolist() == [5, 0, 9] and images.classes == tuple(NAMES)
    assert images.notices == ("cifar10 (test) was read from the hub: uoft-cs/cifar10",)
    again = open_dataset("cifar10", "test", cache=tmp_path)
    assert again.sha256() == images.sha256() and again.notices == images.notices
    assert len(list((tmp_path / "decoded").iterdir())) == 1


def test_the_test_part_of_tiny_imagenet_is_valid_on_the_hub(monkeypatch, tmp_path):
    def load_dataset(name, split):
        assert (name, split) == ("zh-plus/tiny-imagenet", "valid")
        cell = {"bytes": encode(pictures(1, 64)[0]), "path": None}
        return FakeTable({"image": [cell], "label": [199]})

    install_hub(monkeypatch, load_dataset)
    assert open_dataset("tiny-imagenet", "test", cache=tmp_path).shape == (3, 64, 64)


class FakeVision:
    def __init__(self, monkeypatch, name, make):
        package, inner = ModuleType("torchvision"), ModuleType("torchvision.datasets")
        setattr(inner, name, make)
        monkeypatch.setitem(sys.modules, "torchvision", package)
        monkeypatch.setitem(sys.modules, "torchvision.datasets", inner)
        monkeypatch.setattr(sources, "import_torchvision", lambda: package)


def test_from_torchvision_after_the_hub_failed(monkeypatch, tmp_path, capsys):
    def offline(name, split):
        raise ConnectionError("no network\nsecond line")

    install_hub(monkeypatch, offline)
    pixels = pictures(3, side=40)

    class GTSRB(list):
        def __init__(self, root, split, download):
            assert (root, split, download) == (str(tmp_path / "torchvision"), "train", True)
            sys.stdout.write("Files already downloaded\n")
            super().__init__((Image.fromarray(p), n) for n, p in enumerate(pixels))

    FakeVision(monkeypatch, "GTSRB", GTSRB)
    seen = []
    images = open_dataset(
        "gtsrb", "train", cache=tmp_path, progress=lambda *numbers: seen.append(numbers)
    )
    stretched = Image.fromarray(pixels[1]).resize((32, 32), Image.BILINEAR)
    assert np.array_equal(rows(images)[1], np.asarray(stretched))
    assert images.labels.tolist() == [0, 1, 2]
    assert images.notices == ("gtsrb (train) was read with torchvision: GTSRB",)
    assert seen == [(3, 3)]
    assert capsys.readouterr().out == "", "standard output may be carrying a record"


def test_every_reason_is_named_when_no_source_has_the_images(monkeypatch, tmp_path):
    with pytest.raises(InputError) as nothing:
        open_dataset("cifar10", "train", cache=tmp_path)
    message = str(nothing.value)
    assert "BEZOAR_DATA, which names a folder with data, is not set" in message
    assert "pip install datasets" in message
    assert "No module named 'torchvision'" in message
    assert "Set BEZOAR_DATA to a folder with cifar10/train-*.parquet" in message

    def offline(name, split):
        raise ConnectionError("no network\nsecond line")

    class CIFAR10:
        def __init__(self, root, train, download):
            raise OSError("name or service not known")

    install_hub(monkeypatch, offline)
    FakeVision(monkeypatch, "CIFAR10", CIFAR10)
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("BEZOAR_DATA", str(tmp_path / "empty"))
    with pytest.raises(InputError) as failed:
        open_dataset("cifar10", "train", cache=tmp_path)
    message = str(failed.value)
    assert f"{tmp_path / 'empty'} (BEZOAR_DATA) has no cifar10/train-*.parquet" in message
    assert "could not be fetched from the hub: ConnectionError: no network;" in message
    assert "OSError: name or service not known" in message
    with pytest.raises(InputError, match="torchvision does not have it"):
        open_dataset("tiny-imagenet", "train", cache=tmp_path)
    with pytest.raises(InputError, match="hub images come without boxes; vision images come"):
        open_dataset("gtsrb", "train", box_column="roi", cache=tmp_path)


def test_a_hub_copy_with_other_columns_is_a_reason_and_no_crash(monkeypatch, tmp_path):
    install_hub(monkeypatch, lambda name, split: FakeTable({"pixels": [1]}))
    with pytest.raises(InputError, match="no images with labels any more but the columns pixels"):
        open_dataset("cifar10", "train", cache=tmp_path)


def test_wrong_names_splits_and_folders_are_named(monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"perhaps you meant 'cifar10'.*or give the path"):
        open_dataset("cifar", "train")
    with pytest.raises(InputError, match="no split 'val'; expected one of train, test"):
        open_dataset("cifar10", "val")
    monkeypatch.setenv("BEZOAR_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"names .*nowhere, which is no folder"):
        open_dataset("cifar10", "train")
    with pytest.raises(InputError, match=r"no file or folder .*gone\.npz"):
        open_dataset(str(tmp_path / "gone.npz"), "train")


def test_a_damaged_file_is_an_error_and_not_passed_over(folder):
    (folder / "cifar10" / "test.parquet").write_bytes(b"cut short")
    with pytest.raises(InputError, match=r"test\.parquet cannot be read as parquet"):
        open_dataset("cifar10", "test")


def test_unlabelled_images_under_a_name_are_refused(folder):
    table = pq.read_table(folder / "cifar10" / "test.parquet").drop(["label"])
    pq.write_table(table, folder / "cifar10" / "test.parquet")
    with pytest.raises(InputError, match="cifar10 needs labelled images"):
        open_dataset("cifar10", "test")


def test_a_path_that_is_one_set_is_divided_the_same_way_each_time(tmp_path):
    pixels = pictures(20, side=8).transpose(0, 3, 1, 2)
    np.savez(tmp_path / "own.npz", images=pixels, labels=np.arange(20) % 2)
    for path in (tmp_path / "own.npz", str(tmp_path / "own.npz")):
        train, test = (open_dataset(path, split) for split in SPLITS)
        assert train.labels.bincount().tolist() == [8, 8]
        assert test.labels.bincount().tolist() == [2, 2]
        rows_of_both = {image.tobytes() for part in (train, test) for image in rows(part)}
        assert len(rows_of_both) == 20, "no image is in both"
        assert "own.npz is one set of images and was divided: of 20" in train.notices[0]
    np.savez(tmp_path / "one.npz", images=pixels[:1], labels=[0])
    with pytest.raises(InputError, match="expected at least 2"):
        open_dataset(tmp_path / "one.npz", "test")


def test_a_path_with_parts_gives_the_part(tmp_path):
    for part, classes in (("train", "abc"), ("test", "ac")):
        for number, name in enumerate(classes):
            where = tmp_path / "folders" / part / name
            where.mkdir(parents=True)
            Image.fromarray(pictures(1, seed=number)[0]).save(where / "0.png")
    train, test = (open_dataset(tmp_path / "folders", split) for split in SPLITS)
    assert train.labels.tolist() == [0, 1, 2]
    assert test.labels.tolist() == [0, 2], "a class without test images moves no other"
    assert train.classes == test.classes == ("a", "b", "c")
    write(tmp_path / "files/train-0.parquet", pictures(3), [0, 1, 2])
    write(tmp_path / "files/test.parquet", pictures(2), [0, 1])
    assert len(open_dataset(tmp_path / "files", "train")) == 3
    assert len(open_dataset(tmp_path / "files", "test")) == 2


def labels_of(folder):
    """Label → class name of both parts, from files whose labels are ``train`` and ``test``."""
    parts = [open_dataset(folder, split) for split in SPLITS]
    assert parts[0].classes == parts[1].classes
    return [[part.classes[label] for label in part.labels] for part in parts], parts


def test_named_labels_have_the_same_indices_in_both_parts(tmp_path):
    """Names in parquet, of which a part lacks one: those after it must not move up."""
    write(tmp_path / "a/train-0.parquet", pictures(2), ["dog", "bird"], names=None)
    write(tmp_path / "a/train-1.parquet", pictures(1), ["cat"], names=None)
    write(tmp_path / "a/test.parquet", pictures(3), ["bird", "dog", "ant"], names=None)
    names, (train, test) = labels_of(tmp_path / "a")
    assert names == [["dog", "bird", "cat"], ["bird", "dog", "ant"]]
    assert train.classes == ("ant", "bird", "cat", "dog")
    assert (train.labels.tolist(), test.labels.tolist()) == ([3, 1, 2], [1, 3, 0])


def test_parts_whose_schemas_order_the_classes_otherwise_have_the_same_indices(tmp_path):
    write(tmp_path / "a/train.parquet", pictures(2), [0, 1], names=["dog", "cat"])
    write(tmp_path / "a/test.parquet", pictures(2), [0, 1], names=["cat", "dog"])
    names, (train, _) = labels_of(tmp_path / "a")
    assert names == [["dog", "cat"], ["cat", "dog"]] and train.classes == ("dog", "cat")
    write(tmp_path / "a/test.parquet", pictures(2), ["cat", "dog"], names=None)
    assert labels_of(tmp_path / "a")[0] == names
    write(tmp_path / "a/test.parquet", pictures(1), ["eel"], names=None)
    with pytest.raises(InputError, match="the class 'eel' is none of the 2 class names"):
        open_dataset(tmp_path / "a", "test")


@pytest.mark.parametrize("labels", [[0, 1], [None, None]])
def test_a_part_without_names_leaves_the_other_as_it_is(labels, tmp_path):
    write(tmp_path / "a/train.parquet", pictures(2), ["dog", "cat"], names=None)
    write(tmp_path / "a/test.parquet", pictures(2), labels, names=None)
    assert open_dataset(tmp_path / "a", "train").labels.tolist() == [1, 0]
    test = open_dataset(tmp_path / "a", "test")
    assert test.classes is None and (test.labels is None) == (None in labels)


def test_a_name_that_two_classes_share_is_no_hindrance_where_the_parts_agree(tmp_path):
    for part in SPLITS:
        write(tmp_path / f"a/{part}.parquet", pictures(3), [0, 1, 2], names=["crane", "b", "crane"])
    assert open_dataset(tmp_path / "a", "test").labels.tolist() == [0, 1, 2]


def test_a_name_wins_over_a_folder_called_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / "digits" / name).mkdir(parents=True)
        for number in range(2):
            picture = Image.fromarray(pictures(1, seed=number)[0])
            picture.save(tmp_path / "digits" / name / f"{number}.png")
    assert open_dataset("digits", "train").shape == (1, 8, 8)
    assert open_dataset("./digits", "train").shape == (3, 32, 32)


def test_facts_of_a_path_are_those_of_its_pixels():
    pixels = torch.from_numpy(pictures(50, side=7)).permute(0, 3, 1, 2).contiguous()
    pixels[:, 2] = 9
    own = ImageSet.from_arrays(pixels, [0, 4] * 25)
    known = facts("some/folder", own)
    reference = pixels.double() / 255
    assert known.mean == pytest.approx(reference.mean((0, 2, 3)).tolist(), abs=1e-12)
    expected = reference.std((0, 2, 3), correction=0)
    assert known.std[:2] == pytest.approx(expected[:2].tolist(), abs=1e-9)
    assert known.std[2] == 1 / 255, "a constant channel can still be divided by it"
    assert (known.flip, known.crop_padding, known.classes) == (False, 0, 5)
    assert known.shape == (3, 7, 7) and known.name == "some/folder"
    assert facts("x.npz", ImageSet.from_arrays(pixels)).classes == 0
    with pytest.raises(InputError, match="perhaps you meant 'gtsrb'"):
        facts("gtsrbb", own)


def test_signs_and_digits_are_never_flipped():
    assert {name: datasets.get(name).flip for name in datasets.names()} == {
        "cifar10": True,
        "digits": False,
        "gtsrb": False,
        "tiny-imagenet": True,
    }


def test_every_entry_is_complete():
    for name in datasets.names():
        known = datasets.get(name)
        assert known.name == name and known.title and known.citation
        assert len(known.mean) == len(known.std) == known.shape[0]
        if known.hub:
            assert set(known.hub_splits) == set(known.files) == set(SPLITS)
        assert set(known.vision_splits) == (set(SPLITS) if known.vision else set())


def test_the_digits_have_the_facts_of_the_table():
    measured = facts("digits.npz", read_digits())
    known = datasets.get("digits")
    assert known.mean == pytest.approx(measured.mean, abs=5e-5)
    assert known.std == pytest.approx(measured.std, abs=5e-5)
    assert (known.classes, known.shape) == (measured.classes, measured.shape)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar10/train-*.parquet"),
        ("gtsrb", "gtsrb/train.parquet"),
        ("tiny-imagenet", "tinyimagenet/val.parquet"),
    ],
)
def test_real_images_have_the_facts_of_the_table(data_folder, name, file):
    images = ImageSet.open(data_folder / file, channels=3)
    measured, known = facts("as a path.parquet", images), datasets.get(name)
    assert known.mean == pytest.approx(measured.mean, abs=1e-4)
    assert known.std == pytest.approx(measured.std, abs=1e-4)
    assert (known.classes, known.shape) == (measured.classes, measured.shape)


def test_real_test_images_open_by_name_and_from_the_cache(data_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("BEZOAR_DATA", str(data_folder))
    images = open_dataset("gtsrb", "test", cache=tmp_path)
    assert (len(images), images.shape, len(images.classes)) == (12630, (3, 32, 32), 43)
    assert open_dataset("gtsrb", "test", cache=tmp_path).sha256() == images.sha256()
