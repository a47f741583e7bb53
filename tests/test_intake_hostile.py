"""Files that attack: nothing in them ever runs, and damage of any kind gives a clear error."""

import collections
import io
import os
import pickle
import struct
import timeit
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from bezoar import intake
from bezoar.errors import InputError, UnsafeFileError
from bezoar.intake import WeightsFile, load_model, read_weights, torch_files
from bezoar.networks.architectures import build_network

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(x)


def chain(code: str) -> Calls:
    """A gadget of the standard library alone: runpy over a file that another gadget writes."""
    import functools
    import operator
    import runpy

    write = Calls(operator.methodcaller("write_text", code), Path("gadget.py"))
    return Calls(tuple, [write, Calls(functools.partial(runpy.run_path, "gadget.py"))])


def attacks(sentinel: Path) -> dict[str, tuple[object, str]]:
    code = f"open({str(sentinel)!r}, 'w').write('executed')"
    return {
        "os.system": (Calls(os.system, f"touch {sentinel}"), "posix.system"),
        "eval": (Calls(eval, code), "builtins.eval"),
        "exec": (Calls(exec, code), "builtins.exec"),
        "timeit": (Calls(timeit.timeit, code), "timeit.timeit"),
        "gadget chain": (chain(code), "runpy.run_path"),
        "import": (Calls(__import__, "antigravity"), "builtins.__import__"),
        "getattr": (Calls(getattr, 1, "real"), "builtins.getattr"),
    }


def in_zip(pickled: bytes, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")


def in_legacy(pickled: bytes, path: Path) -> None:
    path.write_bytes(MAGIC + pickled + pickle.dumps([], 2))


def bare(pickled: bytes, path: Path) -> None:
    path.write_bytes(pickled)


def first_in_legacy(pickled: bytes, path: Path) -> None:
    path.write_bytes(pickled + MAGIC + pickle.dumps({"a": 1}, 2) + pickle.dumps([], 2))


@pytest.mark.parametrize("name", attacks(Path("x")))
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("container", [in_zip, in_legacy, bare, first_in_legacy])
def test_no_gadget_runs_and_the_error_names_it(tmp_path, monkeypatch, name, protocol, container):
    monkeypatch.chdir(tmp_path)
    sentinel = tmp_path / "sentinel"
    gadget, wanted = attacks(sentinel)[name]
    document = {"state_dict": {"w": 1}, "extra": gadget}
    path = tmp_path / "model.pt"
    container(pickle.dumps(document, protocol), path)
    if path.read_bytes()[:1] != b"\x80" and container is not in_zip:
        with pytest.raises(InputError):
            read_weights(path)
    else:
        with pytest.raises(UnsafeFileError) as caught:
            read_weights(path)
        assert wanted in caught.value.wanted
        assert wanted in str(caught.value)
        assert "torch.save(model.state_dict()" in str(caught.value)
    assert not sentinel.exists()
    assert not (tmp_path / "gadget.py").exists()


def test_the_gadgets_are_real(tmp_path, monkeypatch):
    """Or the tests above would prove nothing: an ordinary unpickler executes them."""
    monkeypatch.chdir(tmp_path)
    for name in ("os.system", "eval", "exec", "gadget chain"):
        sentinel = tmp_path / name.replace(" ", "_")
        pickle.loads(pickle.dumps(attacks(sentinel)[name][0], 4))
        assert sentinel.exists(), name


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_pickled_network_is_refused(tmp_path, legacy):
    path = tmp_path / "net.pt"
    torch.save(Net(), path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnsafeFileError) as caught:
        read_weights(path)
    assert any(name.endswith(".Net") for name in caught.value.wanted)
    assert "torch.nn.modules.linear.Linear" in caught.value.wanted


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_torchscript_archive_is_refused(tmp_path):
    torch.jit.script(Net()).save(tmp_path / "net.pt")
    with pytest.raises(UnsafeFileError, match="TorchScript archive") as caught:
        read_weights(tmp_path / "net.pt")
    assert any("Net" in name for name in caught.value.wanted)


def test_names_agree_with_torch(tmp_path):
    torch.save({"net": Net(), "when": os.stat_result(range(10))}, tmp_path / "net.pt")
    with pytest.raises(UnsafeFileError) as caught:
        read_weights(tmp_path / "net.pt")
    expected = torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "net.pt")
    assert set(caught.value.wanted) == set(expected)


# -- claims that are not true ----------------------------------------------------------------------


def opcodes(tensor: bytes) -> bytes:
    """A zip-format pickle: {"w": a tensor over 4 floats, whose REDUCE arguments are ``tensor``}."""
    storage = b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    identity = b"(" + storage + b"X\x03\x00\x00\x00cpuK\x04tQ"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n("
    hooks = b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}X\x01\x00\x00\x00w" + rebuild + identity + tensor + hooks + b"s."


HUGE = b"\x8a\x06" + (2**40).to_bytes(6, "little")
CLAIMS = {
    "true": (b"K\x00K\x04\x85K\x01\x85", None),
    "larger": (b"K\x00M\xff\xff\x85K\x01\x85", "larger than the values"),
    "terabytes": (b"K\x00" + HUGE + b"\x85K\x01\x85", "larger than the values"),
    "far away": (HUGE + b"K\x01\x85K\x01\x85", "larger than the values"),
    "wide steps": (b"K\x00K\x02\x85" + HUGE + b"\x85", "larger than the values"),
    "repeated": (b"K\x00" + HUGE + b"K\x04\x86K\x00K\x01\x86", "claim"),
    "negative": (b"K\x00J\xff\xff\xff\xff\x85K\x01\x85", "no whole number"),
    "negative offset": (b"J\xff\xff\xff\xffK\x01\x85K\x01\x85", "no whole number"),
    "strides missing": (b"K\x00K\x04\x85)", "without a storage"),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_tensor_may_not_claim_more_than_there_is(tmp_path, name):
    tensor, message = CLAIMS[name]
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", opcodes(tensor))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))
    if message is None:
        assert read_weights(path).tensors["w"].tolist() == [1, 2, 3, 4]
    else:
        with pytest.raises(InputError, match=message):
            read_weights(path)


def test_a_record_shorter_than_claimed_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", opcodes(CLAIMS["true"][0]))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", b"1234")
    with pytest.raises(InputError, match="wrong length"):
        read_weights(path)


def test_a_legacy_file_without_its_values_is_refused(tmp_path):
    """torch would answer with whatever the memory held before."""
    path = tmp_path / "model.pt"
    in_legacy(opcodes(CLAIMS["true"][0]).replace(b"K\x04tQ", b"K\x04NtQ"), path)
    with pytest.raises(InputError, match="values of its tensors are missing"):
        read_weights(path)


def test_zip_bombs_are_refused_unread(tmp_path):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**24))
    with pytest.raises(InputError, match="compressed"):
        read_weights(path)


def test_of_compressed_records_only_so_much_is_read(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(torch_files, "MAX_CODE_BYTES", 1000)
    monkeypatch.setattr(torch_files, "list_globals", lambda s: read.append(len(s.read())) or ())
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("constants", *map(str, range(50))):
            archive.writestr(f"archive/{name}.pkl", bytes(300))
    with pytest.raises(InputError):
        read_weights(path)
    assert sum(read) == 1000


@pytest.mark.parametrize(
    ("head", "built"),
    [
        (torch.zeros(3_000_000, 0), ["cpu"]),  # declares its rows for nothing, so it is no head
        (torch.zeros(1_000_000, 1, dtype=torch.uint8), ["meta"]),
        (torch.zeros(1, dtype=torch.uint8).expand(1_000_000, 1), ["meta"]),
    ],
)
def test_a_head_of_millions_of_rows_takes_no_memory(tmp_path, monkeypatch, head, built):
    devices = []

    def build(*arguments, **options):
        devices.append(torch.zeros(1).device.type)
        return build_network(*arguments, **options)

    monkeypatch.setattr(intake, "build_network", build)
    torch.save({"fc.weight": head, "conv1.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="do not fit the network"):
        load_model(tmp_path / "model.pt", architecture="bezoar:resnet-8", mean=(0.0,), std=(1.0,))
    assert devices == built


def test_pickle_bombs_are_refused(tmp_path):
    deep_list = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    deep_tuple = b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s."
    wide_tuple = b"\x80\x02}" + b")q\x00" + b"h\x00\x86q\x00" * 60 + b"K\x01s."
    doubling = b"\x80\x02}K\x00]q\x00s" + b"".join(
        b"K" + bytes([i]) + b"]q" + bytes([i]) + b"(" + (b"h" + bytes([i - 1])) * 50 + b"es"
        for i in range(1, 60)
    ) + b"."  # fmt: skip
    one_by_one = b"\x80\x02}(" + b"K\x01" * 200 + b"tq\x00(" + b"h\x00" * 200 + b"tK\x01s."
    for pickled in (deep_list, deep_tuple, wide_tuple, doubling, one_by_one):
        in_zip(pickled, tmp_path / "model.pt")
        with pytest.raises(InputError):
            read_weights(tmp_path / "model.pt")


def test_shadowed_methods_do_no_harm(tmp_path):
    """A loaded OrderedDict can carry attributes called like its methods."""
    ordered = b"\x80\x02ccollections\nOrderedDict\n)R"
    attributes = b"}" + b"".join(
        b"X" + struct.pack("<I", len(name)) + name.encode() + b"K\x01s"
        for name in ("items", "keys", "values", "get", "_metadata", "__class__", "__iter__")
    )
    pickled = opcodes(CLAIMS["true"][0])
    pickled = ordered + pickled.removeprefix(b"\x80\x02}")[:-1] + attributes + b"b."
    path = tmp_path / "model.pt"
    in_zip(pickled, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))
    weights = read_weights(path)
    assert weights.tensors["w"].tolist() == [1, 2, 3, 4]
    assert list(weights.document.keys()) == ["w"]
    assert weights.document.__dict__ == {}


def test_codecs_are_not_looked_up_by_name(tmp_path):
    pickled = b"\x80\x02}K\x00c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86Rs."
    in_zip(pickled, tmp_path / "model.pt")
    with pytest.raises(InputError, match="another codec than latin1"):
        read_weights(tmp_path / "model.pt")


# -- fuzzing: a clear error or a correct load, nothing else ----------------------------------------


def samples() -> list[bytes]:
    state = collections.OrderedDict(
        {
            "module.conv.weight": torch.arange(36.0).reshape(2, 2, 3, 3),
            "module.bn.num_batches_tracked": torch.tensor(5),
            "module.fc.weight": torch.ones(3, 2, dtype=torch.bfloat16),
            "module.fc.bias": torch.zeros(3, dtype=torch.float16),
        }
    )
    document = {"state_dict": state, "epoch": 3, "args": {"lr": 0.1}}
    result = [safetensors.torch.save(dict(state), metadata={"format": "pt"})]
    for zipped in (True, False):
        stream = io.BytesIO()
        torch.save(document, stream, _use_new_zipfile_serialization=zipped)
        result.append(stream.getvalue())
    return result


SAMPLES = samples()
FUZZ = settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def read_or_refuse(content: bytes, folder: Path) -> None:
    path = folder / "fuzzed.pt"
    path.write_bytes(content)
    try:
        weights = read_weights(path)
    except InputError:
        return
    assert isinstance(weights, WeightsFile)
    assert weights.tensors
    for name, tensor in weights.tensors.items():
        assert isinstance(name, str)
        assert isinstance(tensor, torch.Tensor)
        tensor.double().sum()  # the values can be reached


@FUZZ
@given(data=st.data())
def test_mutated_files_give_an_error_or_a_load(tmp_path, data):
    content = bytearray(data.draw(st.sampled_from(SAMPLES)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    read_or_refuse(bytes(content), tmp_path)


@FUZZ
@given(data=st.data())
def test_mutated_pickles_give_an_error_or_a_load(tmp_path, data):
    """Byte changes inside data.pkl, with the archive made whole again."""
    stream = io.BytesIO(SAMPLES[1])
    with zipfile.ZipFile(stream) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    pickled = bytearray(records["archive/data.pkl"])
    for _ in range(data.draw(st.integers(1, 4))):
        pickled[data.draw(st.integers(0, len(pickled) - 1))] = data.draw(
            st.one_of(st.integers(0, 255), st.sampled_from(b"Rbs0tQ)}]K(.\x85\x86\x87qhcaeNJM"))
        )
    rewritten = io.BytesIO()
    with zipfile.ZipFile(rewritten, "w") as archive:
        for name, record in records.items():
            archive.writestr(name, bytes(pickled) if name.endswith("data.pkl") else record)
    read_or_refuse(rewritten.getvalue(), tmp_path)


@FUZZ
@given(data=st.data())
def test_truncated_and_spliced_files_give_an_error_or_a_load(tmp_path, data):
    one, two = data.draw(st.sampled_from(SAMPLES)), data.draw(st.sampled_from(SAMPLES))
    cut = data.draw(st.integers(0, len(one)))
    start = data.draw(st.integers(0, len(two)))
    tail = data.draw(st.sampled_from([b"", two[start:], b"\x00" * 64, one[cut // 2 :]]))
    read_or_refuse(one[:cut] + tail, tmp_path)


@FUZZ
@given(
    start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", MAGIC, b"\x40" + bytes(7) + b"{"]),
    rest=st.binary(max_size=300),
)
def test_random_bytes_give_an_error_or_a_load(tmp_path, start, rest):
    read_or_refuse(start + rest, tmp_path)
