"""Parquet files as Hugging Face ``datasets`` and others write them."""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bezoar.errors import InputError
from bezoar.images import ImageSet

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)


def encode(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


CELLS = [{"bytes": encode(p), "path": f"{i}.png"} for i, p in enumerate(PIXELS)]


def write(path, cells=CELLS, names=None, name="image", **columns):
    """A table in the layout of ``datasets``, with class names in the schema if given."""
    arrays = {name: pa.array(cells)} if cells is not None else {}
    table = pa.table(
        arrays | {k: v if isinstance(v, pa.Array) else pa.array(v) for k, v in columns.items()}
    )
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    pq.write_table(table, path, row_group_size=4)
    return path


def pixels_of(image_set):
    return image_set.images.permute(0, 2, 3, 1).numpy()


def test_layout_of_datasets_with_class_names(tmp_path):
    path = write(tmp_path / "a.parquet", names=["cat", "dog"], label=[0, 1, 1, 0, 0, 1])
    images = ImageSet.open(path)
    assert np.array_equal(pixels_of(images), PIXELS)
    assert images.labels.tolist() == [0, 1, 1, 0, 0, 1]
    assert images.classes == ("cat", "dog")
    assert images.notices == ()


def test_raw_bytes_and_other_usual_column_names(tmp_path):
    path = write(
        tmp_path / "a.parquet", [c["bytes"] for c in CELLS], name="img", fine_label=[3] * 6
    )
    images = ImageSet.open(path)
    assert np.array_equal(pixels_of(images), PIXELS)
    assert images.labels.tolist() == [3] * 6
    assert images.classes is None


def test_paths_are_relative_to_the_parquet_file(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "0.png").write_bytes(CELLS[0]["bytes"])
    path = write(tmp_path / "a.parquet", [{"bytes": None, "path": "files/0.png"}])
    assert np.array_equal(pixels_of(ImageSet.open(path)), PIXELS[:1])


@pytest.mark.parametrize("inner", ["../secret.png", "in/../../secret.png", "{root}/secret.png"])
def test_a_path_leads_to_nothing_else_of_the_machine(tmp_path, inner):
    """A report would show a stranger's data set the user's own pictures."""
    (tmp_path / "secret.png").write_bytes(CELLS[0]["bytes"])
    (tmp_path / "data" / "in").mkdir(parents=True)
    cell = {"bytes": None, "path": inner.format(root=tmp_path)}
    with pytest.raises(InputError, match="does not lie beside the data"):
        ImageSet.open(write(tmp_path / "data" / "a.parquet", [cell]))


@pytest.mark.parametrize(
    "labels", [None, [-1] * 6, pa.array([None] * 6, pa.int64()), pa.array([None] * 6, pa.string())]
)
def test_no_labels(tmp_path, labels):
    columns = {} if labels is None else {"label": labels}
    images = ImageSet.open(write(tmp_path / "a.parquet", **columns))
    assert images.labels is None
    assert bool(images.notices) == (labels is not None)


def test_some_labels_missing_counts_as_unlabelled_and_is_said(tmp_path):
    images = ImageSet.open(write(tmp_path / "a.parquet", label=[0, 1, None, 0, 1, -1]))
    assert images.labels is None
    assert images.notices[0].startswith("2 of 6 images")


def test_names_as_labels(tmp_path):
    path = write(tmp_path / "a.parquet", label=["dog", "cat", "dog", "dog", "cat", "cat"])
    images = ImageSet.open(path)
    assert images.classes == ("cat", "dog")
    assert images.labels.tolist() == [1, 0, 1, 1, 0, 0]


def test_class_names_of_the_model_define_the_indices(tmp_path):
    path = write(tmp_path / "a.parquet", names=["cat", "dog", "emu"], label=[0, 1, 1, 0, 0, 1])
    images = ImageSet.open(path, classes=["dog", "owl", "cat"])  # no image is an emu
    assert images.labels.tolist() == [2, 0, 0, 2, 2, 0]
    assert images.classes == ("dog", "owl", "cat")
    with pytest.raises(InputError, match="class 'cat' is none of the 2 class names; perhaps you"):
        ImageSet.open(path, classes=["dog", "cart"])


def test_label_beyond_the_class_names_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", names=["cat", "dog"], label=[0, 1, 2, 0, 0, 1])
    with pytest.raises(InputError, match="label 2, and there are 2 class names"):
        ImageSet.open(path)


@pytest.mark.parametrize("metadata", [b"", b"[1]", b'{"info": {"features": {"label": {}}}}'])
def test_schema_entries_of_another_kind_are_no_class_names(tmp_path, metadata):
    table = pa.table({"image": CELLS, "label": [0] * 6})
    pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), tmp_path / "a.parquet")
    assert ImageSet.open(tmp_path / "a.parquet").classes is None


def test_folder_and_pattern_of_parts(tmp_path):
    write(tmp_path / "train-00001-of-00002.parquet", CELLS[4:], label=[1, 1])
    write(tmp_path / "train-00000-of-00002.parquet", CELLS[:4], label=[0] * 4)
    images = ImageSet.open(tmp_path)
    assert np.array_equal(pixels_of(images), PIXELS)
    assert images.labels.tolist() == [0, 0, 0, 0, 1, 1]
    write(tmp_path / "test-00000-of-00001.parquet", CELLS[:1], label=[1])
    with pytest.raises(InputError, match="the test and the train part of a data set"):
        ImageSet.open(tmp_path)
    assert len(ImageSet.open(tmp_path / "train-*.parquet")) == 6
    with pytest.raises(InputError, match="no file matches"):
        ImageSet.open(tmp_path / "validation-*.parquet")
    (tmp_path / "train.txt").write_text("x")
    with pytest.raises(InputError, match=r"matches .*train\.txt; expected \.parquet"):
        ImageSet.open(tmp_path / "train*")


def test_parts_of_different_data_sets_are_refused(tmp_path):
    write(tmp_path / "a.parquet", names=["cat", "dog"], label=[0] * 6)
    write(tmp_path / "b.parquet", names=["dog", "cat"], label=[0] * 6)
    with pytest.raises(InputError, match=r"b\.parquet has other class names than"):
        ImageSet.open(tmp_path)
    write(tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet has no column 'label'; it has image"):
        ImageSet.open(tmp_path)


def test_columns_can_be_named(tmp_path):
    path = write(tmp_path / "a.parquet", name="photo", kind=[1] * 6)
    said = "has the columns photo, kind; expected the images in one .*; rename it to image, or in"
    with pytest.raises(InputError, match=said):
        ImageSet.open(path)
    images = ImageSet.from_parquet(path, image_column="photo", label_column="kind")
    assert images.labels.tolist() == [1] * 6
    with pytest.raises(InputError, match="has no column 'nr'; it has photo, kind"):
        ImageSet.from_parquet(path, image_column="photo", label_column="nr")


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 4)])
def test_box_column_cuts_and_enlarges(tmp_path, kind):
    boxes = [[0, 0, 4, 5], [1, 1, 3, 4], [0.5, 0, 2.5, 5], [0, 0, 1, 1], [2, 3, 4, 5], [1, 0, 4, 2]]
    path = write(tmp_path / "a.parquet", roi=pa.array(boxes, kind))
    images = pixels_of(ImageSet.open(path, box_column="roi"))
    for pixels, box, result in zip(PIXELS, boxes, images, strict=True):
        expected = Image.fromarray(pixels).resize((4, 5), Image.Resampling.BICUBIC, box=box)
        assert np.array_equal(result, np.asarray(expected))
    assert np.array_equal(images[0], PIXELS[0])
    with pytest.raises(InputError, match="has no column 'box'"):
        ImageSet.open(path, box_column="box")


@pytest.mark.parametrize("box", [None, [1.0, 2.0], [0.0, None, 1.0, 1.0]])
def test_box_that_is_none_names_its_row(tmp_path, box):
    path = write(tmp_path / "a.parquet", roi=[[0.0, 0.0, 1.0, 1.0]] * 5 + [box])
    with pytest.raises(InputError, match=r"row 5 \(5\.png\) has .* in column 'roi'; expected four"):
        ImageSet.open(path, box_column="roi")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            {"bytes": b"no image", "path": "5.png"},
            r"row 5 \(5\.png\) is not recognised as an image",
        ),
        ({"bytes": CELLS[5]["bytes"][:60], "path": None}, "row 5 is damaged or cut short"),
        ({"bytes": None, "path": None}, "row 5 has no image but NoneType"),
        ({"bytes": None, "path": "gone.png"}, r"row 5 \(gone\.png\) cannot be read"),
        (None, "row 5 has no image but NoneType"),
    ],
)
def test_unusable_image_names_its_row(tmp_path, cell, message):
    with pytest.raises(InputError, match=message):
        ImageSet.open(write(tmp_path / "a.parquet", [*CELLS[:5], cell]))


def test_image_column_of_numbers_is_refused(tmp_path):
    with pytest.raises(InputError, match="row 0 has no image but int"):
        ImageSet.open(write(tmp_path / "a.parquet", [1, 2]))


def test_damaged_and_empty_files_are_refused(tmp_path):
    path = write(tmp_path / "a.parquet", label=[0] * 6)
    data = path.read_bytes()
    for content in (b"", b"hello", data[:100], data[:-20]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.parquet cannot be read as parquet"):
            ImageSet.open(path)
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), path)
    with pytest.raises(InputError, match="has no rows"):
        ImageSet.open(path)
    with pytest.raises(InputError, match=r"no \.parquet files"):
        ImageSet.from_parquet(tmp_path.parent / tmp_path.name / "..")


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install .* -e '\.\[data\]'"):
        ImageSet.open(path)


@pytest.mark.skipif("BEZOAR_DATA" not in os.environ, reason="BEZOAR_DATA does not name the data")
def test_real_cifar10(tmp_path):
    file = pq.ParquetFile(Path(os.environ["BEZOAR_DATA"]) / "cifar10" / "test.parquet")
    table = pa.Table.from_batches([next(file.iter_batches(batch_size=100))])
    pq.write_table(table, tmp_path / "first.parquet")
    images = ImageSet.open(tmp_path / "first.parquet", size=(32, 32))
    assert images.shape == (3, 32, 32)
    assert images.classes[:2] == ("airplane", "automobile")
    assert images.class_counts(10).sum() == 100
    expected = Image.open(io.BytesIO(table["image"][7].as_py()["bytes"])).convert("RGB")
    assert np.array_equal(pixels_of(images)[7], np.asarray(expected))
    means = images.images.double().mean((0, 2, 3)) / 255
    assert np.allclose(means, [0.4914, 0.4822, 0.4465], atol=0.04)
