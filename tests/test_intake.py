"""Reading weights in every wrapping, and writing them back in the same."""

import argparse
import itertools
import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from bezoar.errors import InputError
from bezoar.intake import (
    check_ending,
    check_finite,
    check_writable,
    facts,
    read_weights,
    write_weights,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PREFIXES = ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.model.")
NESTINGS = ((), ("state_dict",), ("model",), ("net",), ("checkpoint", "model_state_dict"))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(), fc=nn.Linear(4, 5),
        )
    )  # fmt: skip


def state_of(dtype: torch.dtype = torch.float32, prefix: str = "") -> OrderedDict[str, Tensor]:
    state = network().to(dtype).state_dict()
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


def wrapped(state: dict[str, Tensor], nesting: tuple[str, ...]) -> dict:
    for key in reversed(nesting):
        state = {"epoch": 7, key: state, "optimizer": {"state": {0: {"exp_avg": torch.ones(9, 9)}}}}
    return state


def save(document: dict, path: Path, container: str) -> Path:
    if container == "safetensors":
        safetensors.torch.save_file(document, path, metadata={"format": "pt", "note": "é"})
    else:
        torch.save(document, path, _use_new_zipfile_serialization=container == "torch zip")
    return path


def load(path: Path, container: str) -> dict:
    if container == "safetensors":
        return safetensors.torch.load_file(path)
    extra = [argparse.Namespace]
    with torch.serialization.safe_globals(extra):
        return torch.load(path, weights_only=True)


FORMS = [
    (container, prefix, nesting, dtype)
    for container, prefix, nesting, dtype in itertools.product(
        ("safetensors", "torch zip", "torch legacy"), PREFIXES, NESTINGS, DTYPES
    )
    if container != "safetensors" or nesting == ()
]


@pytest.mark.parametrize("container", ["safetensors", "torch zip", "torch legacy"])
def test_round_trip_keeps_keys_dtypes_container_and_everything_else(tmp_path, container):
    forms = [form for form in FORMS if form[0] == container]
    for number, (_, prefix, nesting, dtype) in enumerate(forms):
        document = wrapped(state_of(dtype, prefix), nesting)
        source = save(document, tmp_path / f"{number}.in", container)
        weights = read_weights(source)
        assert (weights.container, weights.prefix, weights.nesting) == (container, prefix, nesting)
        assert weights.others == ()
        assert set(weights.tensors) == set(state_of())
        assert weights.tensors["fc.weight"].dtype == dtype

        out = tmp_path / f"{number}.out"
        write_weights(weights, weights.tensors, out)
        assert read_weights(out).container == container
        assert_same(load(out, container), document)
        if container == "safetensors":
            with safetensors.safe_open(out, "pt") as file:
                assert file.metadata() == {"format": "pt", "note": "é"}


def assert_same(left: object, right: object) -> None:
    assert type(left) is type(right) or isinstance(left, dict)
    if isinstance(left, dict):
        assert set(left) == set(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    else:
        assert left == right


def test_changed_weights_are_what_is_written(tmp_path):
    source = save(
        wrapped(state_of(torch.float16, "module."), ("net",)), tmp_path / "a", "torch zip"
    )
    weights = read_weights(source)
    changed = {name: tensor.float() for name, tensor in weights.tensors.items()}
    changed["fc.bias"] = torch.arange(5.0)
    write_weights(weights, changed, tmp_path / "b")
    written = torch.load(tmp_path / "b", weights_only=True)
    assert written["net"]["module.fc.bias"].tolist() == [0, 1, 2, 3, 4]
    assert written["net"]["module.fc.bias"].dtype == torch.float16
    assert written["epoch"] == 7
    assert torch.equal(written["net"]["module.fc.weight"], weights.tensors["fc.weight"])


def test_harmless_extras_survive(tmp_path):
    document = {
        "state_dict": network().state_dict(),
        "args": argparse.Namespace(lr=0.1, nested=argparse.Namespace(a=[1, (2, "x")])),
        "best": np.float64(0.93),
        "curve": np.arange(6, dtype=np.int16).reshape(2, 3),
        "name": np.str_("héllo"),
        "blob": b"\x00\xff",
        "set": {1, 2},
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "counter": torch.optim.lr_scheduler.Counter({3: 1}),
    }
    source = save(document, tmp_path / "a.pt", "torch zip")
    weights = read_weights(source)
    assert facts(weights).extras["best"] == "0.93"
    write_weights(weights, weights.tensors, tmp_path / "b.pt")
    again = read_weights(tmp_path / "b.pt").document
    assert again["args"] == document["args"]
    assert again["best"] == 0.93
    assert isinstance(again["best"], np.float64)
    assert np.array_equal(again["curve"], document["curve"])
    assert again["curve"].dtype == np.int16
    for key in ("name", "blob", "set", "device", "dtype", "counter"):
        assert again[key] == document[key]
    assert again["state_dict"]._metadata == document["state_dict"]._metadata


def test_reading_leaves_no_globals_allowed(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    read_weights(save({"a": state_of()}, tmp_path / "a.pt", "torch zip"))
    assert set(torch.serialization.get_safe_globals()) == before


def test_the_weights_are_found_beside_an_optimizer_an_average_and_small_tensors(tmp_path):
    ema = {name: tensor + 1 for name, tensor in state_of().items()}
    document = {
        "optimizer": {"state": {0: {"exp_avg": torch.ones(1000, 1000)}}},
        "mean": torch.zeros(3),
        "ema": ema,
        "model": state_of(),
    }
    source = save(document, tmp_path / "a.pt", "torch zip")
    weights = read_weights(source)
    assert weights.nesting == ("model",)
    assert weights.others == ("ema",)
    assert "'ema'" in weights.notices[0]
    averaged = read_weights(source, entry="ema")
    assert torch.equal(averaged.tensors["fc.bias"], ema["fc.bias"])
    with pytest.raises(InputError, match=r"no weights under 'best'; it has: .*'ema'"):
        read_weights(source, entry="best")


def test_averaged_models_count_is_kept_and_is_no_weight(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(network())
    source = save(averaged.state_dict(), tmp_path / "a.pt", "torch zip")
    weights = read_weights(source)
    assert set(weights.tensors) == set(state_of())
    write_weights(weights, weights.tensors, tmp_path / "b.pt")
    assert set(torch.load(tmp_path / "b.pt")) == set(averaged.state_dict())


def test_tied_strided_and_empty_tensors(tmp_path):
    shared = torch.arange(12.0).reshape(3, 4)
    state = {
        "a.weight": shared,
        "b.weight": shared,
        "c.weight": shared.t(),
        "d.weight": torch.ones(1).expand(4, 3),
        "e.weight": torch.zeros(0, 3),
        "f.count": torch.tensor(3),
        "g.weight": torch.nn.Parameter(torch.ones(2, 2)),
    }
    source = save(state, tmp_path / "a.pt", "torch zip")
    weights = read_weights(source)
    write_weights(weights, weights.tensors, tmp_path / "b.pt")
    again = torch.load(tmp_path / "b.pt", weights_only=True)
    assert_same(again, state)
    assert again["a.weight"].data_ptr() == again["b.weight"].data_ptr()
    assert isinstance(again["g.weight"], torch.nn.Parameter)


def test_checksums_may_be_switched_off_by_the_writer(tmp_path):
    computed = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        source = save(state_of(), tmp_path / "a.pt", "torch zip")
    finally:
        torch.serialization.set_crc32_options(computed)
    assert set(read_weights(source).tensors) == set(state_of())


# -- writing: never over the input, never half -----------------------------------------------------


def test_the_input_is_never_overwritten_under_any_name(tmp_path, monkeypatch):
    source = save(state_of(), tmp_path / "model.pt", "torch zip")
    before = source.read_bytes()
    (tmp_path / "soft.pt").symlink_to(source)
    os.link(source, tmp_path / "hard.pt")
    (tmp_path / "sub").mkdir()
    (tmp_path / "dir").symlink_to(tmp_path, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    weights = read_weights("model.pt")
    names = ("model.pt", "soft.pt", "hard.pt", "sub/../model.pt", "dir/model.pt", str(source))
    for name in names:
        for refuse in (check_writable, lambda out, w: write_weights(w, w.tensors, out)):
            with pytest.raises(InputError, match="never overwritten"):
                refuse(name, weights)
    assert source.read_bytes() == before


def test_unwritable_outputs_are_found_before_any_work(tmp_path):
    weights = read_weights(save(state_of(), tmp_path / "model.pt", "torch zip"))
    with pytest.raises(InputError, match="does not exist; create it"):
        check_writable(tmp_path / "missing" / "out.pt", weights)
    with pytest.raises(InputError, match="is a folder"):
        check_writable(tmp_path, weights)
    with pytest.raises(InputError, match=r"cannot be written|does not exist"):
        check_writable("/proc/out.pt", weights)  # nobody may create files there, root neither
    check_writable(tmp_path / "out.pt", weights)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt"]


@pytest.mark.parametrize("container", ["torch zip", "torch legacy", "safetensors"])
def test_a_name_may_not_promise_another_container(tmp_path, container):
    weights = read_weights(save(state_of(), tmp_path / "model", container))
    fit, other = ("b.pt", "b.safetensors"), ("b.SafeTensors", "b.pth")
    if container == "safetensors":
        fit, other = fit[::-1], other[::-1]
    for name in (fit[0], "b", "b.weights"):
        check_ending(name, weights)
    for name in (fit[1], other[0]):
        with pytest.raises(InputError, match=r"whose container is kept; give a name that ends in"):
            check_ending(name, weights)


@pytest.mark.parametrize("failure", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failure):
    weights = read_weights(save(state_of(), tmp_path / "model.pt", "torch zip"))
    out = tmp_path / "out.pt"
    out.write_text("older result")

    def half(document, stream, **_):
        stream.write(b"half of it")
        raise failure

    monkeypatch.setattr(torch, "save", half)
    expected = InputError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_weights(weights, weights.tensors, out)
    assert out.read_text() == "older result"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "out.pt"]


def test_writing_refuses_other_names_shapes_and_values_that_do_not_fit(tmp_path):
    source = save(state_of(torch.float16), tmp_path / "model.pt", "torch zip")
    weights = read_weights(source)
    state = dict(weights.tensors)
    out = tmp_path / "out.pt"
    with pytest.raises(InputError, match=r"missing \(1\): fc.bias"):
        write_weights(weights, {k: v for k, v in state.items() if k != "fc.bias"}, out)
    with pytest.raises(InputError, match=r"unexpected \(1\): mask"):
        write_weights(weights, {**state, "mask": torch.ones(2)}, out)
    with pytest.raises(InputError, match=r"fc\.bias has shape 4 and 5"):
        write_weights(weights, {**state, "fc.bias": torch.ones(4)}, out)
    with pytest.raises(InputError, match=r"fc.bias has values .*float16 cannot hold"):
        write_weights(weights, {**state, "fc.bias": torch.full((5,), 1e6)}, out)
    assert not out.exists()


# -- files that are no checkpoint ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"epoch,loss\n1,0.5\n", "is a text file, not a checkpoint"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "is a PNG image"),
        (b"<!DOCTYPE html><html></html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "is an HDF5 file"),
        (b"\x00\x01\x02\x03" * 20, "is of no known format"),
        (b"PK\x03\x04" + bytes(100), "damaged zip archive"),
        ((10**15).to_bytes(8, "little") + b'{"a":1}', "header claims"),
    ],
)
def test_a_file_that_is_no_checkpoint_gives_one_sentence(tmp_path, content, message):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


def test_an_onnx_file_is_named(tmp_path):
    path = tmp_path / "model.ONNX"
    path.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.8.0")
    with pytest.raises(InputError, match="is an ONNX model, not a checkpoint; expected a file wri"):
        read_weights(path)


@pytest.mark.filterwarnings("ignore:.*quantize")
def test_missing_files_folders_and_other_documents(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        read_weights(tmp_path / "none.pt")
    with pytest.raises(InputError, match="is a folder"):
        read_weights(tmp_path)
    for document, message in [
        (torch.ones(3), "holds a Tensor; expected a dictionary"),
        ([1, 2], "holds a list; expected"),
        ({"epoch": 3}, "holds no tensors; expected"),
        ({"a": torch.eye(3).to_sparse()}, "holds sparse tensors"),
        ({"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, "quantized tensors"),
        ({"a": torch.ones(3, device="meta")}, "meta tensors"),
    ]:
        torch.save(document, tmp_path / "a.pt")
        with pytest.raises(InputError, match=message):
            read_weights(tmp_path / "a.pt")


def test_broken_numbers_are_named(tmp_path):
    state = state_of()
    state["fc.weight"][0, 0] = torch.nan
    state["conv.bias"][1] = torch.inf
    weights = read_weights(save(state, tmp_path / "a.pt", "torch zip"))
    assert facts(weights).nonfinite == ("conv.bias", "fc.weight")
    with pytest.raises(InputError, match=r"NaN or infinite values in conv.bias, fc.weight"):
        check_finite(weights)
    check_finite(read_weights(save(state_of(), tmp_path / "b.pt", "torch zip")))
