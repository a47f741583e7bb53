"""Networks by name, from every source."""

import sys

import pytest
import torch
from torch import nn

from bezoar.errors import InputError
from bezoar.networks import architectures
from bezoar.networks.architectures import build_network, sources_beside
from bezoar.networks.vision import import_torchvision


def write(folder, text, name="net.py"):
    path = folder / name
    path.write_text("from torch import nn\n" + text)
    return path


def test_own_networks_take_classes_and_channels():
    network = build_network("bezoar:resnet-8", {}, num_classes=7, channels=1)
    assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 7)
    with pytest.raises(InputError, match="perhaps you meant 'resnet-8'"):
        build_network("bezoar:resnet8")


def test_a_function_or_class_of_a_file(tmp_path):
    path = write(
        tmp_path,
        "def build(num_classes, *, channels=3): return nn.Linear(channels, num_classes)\n"
        "class Net(nn.Linear):\n    def __init__(self): super().__init__(2, 2)\n",
    )
    network = build_network(f"{path}:build", {}, num_classes=4, channels=5)
    assert network.weight.shape == (4, 5)
    given = build_network(f"{path}:build", {"channels": 2}, num_classes=4, channels=5)
    assert given.weight.shape == (4, 2)
    assert build_network(f"{path}:Net", {}, num_classes=9).weight.shape == (2, 2)


def test_files_beside_it_can_be_imported_and_two_folders_do_not_mix(tmp_path):
    before, modules = list(sys.path), set(sys.modules)
    for size in (3, 4):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / "layers.py").write_text(f"SIZE = {size}\n")
        write(
            folder,
            "import layers\ndef build():\n    from layers import SIZE\n"
            "    return nn.Linear(layers.SIZE, SIZE)\n",
        )
        network = build_network(f"{folder / 'net.py'}:build")
        assert network.weight.shape == (size, size)
    assert sys.path == before
    assert "layers" not in set(sys.modules) - modules


def test_libraries_of_an_environment_beside_it_stay_imported(tmp_path, monkeypatch):
    """Some, such as torchvision, cannot be imported twice in a process."""
    packages = tmp_path / ".venv" / "lib" / "site-packages"
    (packages / "bezoar_test_library").mkdir(parents=True)
    (packages / "bezoar_test_library" / "__init__.py").write_text("from . import inner\n")
    (packages / "bezoar_test_library" / "inner.py").touch()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "bezoar_test_layers.py").touch()
    (tmp_path / "bezoar_test_beside.py").touch()
    monkeypatch.setattr(sys, "path", [*sys.path, str(packages)])
    path = write(
        tmp_path,
        "import sys, bezoar_test_library, bezoar_test_beside\n"
        f"sys.path.append({str(tmp_path / 'own')!r})\n"
        "import bezoar_test_layers\n"
        "def build(): return nn.Linear(1, 1)\n",
    )
    build_network(f"{path}:build")
    stayed = sorted(name for name in sys.modules if name.startswith("bezoar_test_"))
    assert stayed == ["bezoar_test_library", "bezoar_test_library.inner"]
    for name in stayed:
        monkeypatch.delitem(sys.modules, name)


def test_the_sources_that_may_be_imported_are_those_beside_and_below(tmp_path):
    for name in (
        *("net.py", "layers.py", "blocks/__init__.py", "blocks/deep/er.py", "notes.txt"),
        *(".venv/a.py", ".hidden.py", "__pycache__/a.py", "env/lib/a.py", "conda/lib/a.py"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "env" / "pyvenv.cfg").touch()
    (tmp_path / "conda" / "conda-meta").mkdir()
    (tmp_path / "blocks" / "up").symlink_to(tmp_path)
    found = sources_beside(tmp_path / "net.py")
    assert [file.relative_to(tmp_path).as_posix() for file in found] == [
        *("layers.py", "blocks/__init__.py", "blocks/deep/er.py")
    ]


def test_of_very_many_sources_the_nearest_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(architectures, "_MOST_FILES", 2)
    (tmp_path / "a").mkdir()
    for name in ("net.py", "z.py", "a/b.py", "a/c.py"):
        (tmp_path / name).touch()
    found = sources_beside(tmp_path / "net.py")
    assert [file.name for file in found] == ["z.py", "b.py"]
    monkeypatch.setattr(architectures, "_MOST_FOLDERS", 1)
    assert [file.name for file in sources_beside(tmp_path / "net.py")] == ["z.py"]


def test_building_leaves_the_random_generator_as_it_was():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    build_network("bezoar:small-cnn")
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("text", "function", "message"),
    [
        ("def build(): return nn.Linear(1, 1)", "make", "no function 'make'; it has: build"),
        ("def build(): return nn.Linear(1, 1)", "biuld", "perhaps you meant 'build'"),
        ("def build(): raise ValueError('bad depth')", "build", "ValueError: bad depth"),
        ("def build(): return 3", "build", "returned a int; expected a torch.nn.Module"),
        ("def build(depth): return nn.Linear(1, 1)", "build", "missing 1 required .* 'depth'"),
        ("import nothing_of_this_name", "build", "cannot be imported: ModuleNotFoundError"),
        ("def build(:", "build", "cannot be imported: SyntaxError"),
        ("def build(): return nn.Linear(1, 1)", "", "no function ''; it has: build"),
    ],
)
def test_a_file_that_does_not_work_says_why(tmp_path, text, function, message):
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=message):
        build_network(f"{path}:{function}")
    assert str(tmp_path) not in sys.path


def test_unknown_forms_are_explained(tmp_path):
    path = write(tmp_path, "def small(): ...\ndef large(): ...\n")
    with pytest.raises(InputError, match=r"which function .*: small, large"):
        build_network(str(path))
    with pytest.raises(InputError, match=r"there is no file .*gone.py"):
        build_network(f"{tmp_path / 'gone.py'}:build")
    with pytest.raises(InputError, match=r"expected timm:NAME.*perhaps you meant 'timm:resnet18'"):
        build_network("tim:resnet18")
    with pytest.raises(InputError, match="expected timm:NAME"):
        build_network("resnet18")


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_weights_are_never_downloaded(source):
    argument = {"timm": "pretrained", "torchvision": "weights"}[source]
    with pytest.raises(InputError, match="never downloaded"):
        build_network(f"{source}:resnet18", {argument: "DEFAULT"})


def test_a_missing_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    for source in ("timm", "torchvision"):
        with pytest.raises(InputError, match=r"pip install -c .* '\.\[vision\]'"):
            build_network(f"{source}:resnet18")


def torchvision_or_skip():
    try:
        import_torchvision()
    except InputError:
        pytest.skip("torchvision is not installed (extra 'vision')")


def test_torchvision_networks():
    torchvision_or_skip()
    network = build_network("torchvision:resnet18", {"weights": None}, num_classes=6, channels=3)
    assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 6)
    with pytest.raises(InputError, match=r"perhaps you meant .*'resnet18'"):
        build_network("torchvision:resnet19")
    with pytest.raises(InputError, match="no architecture 'torchvision:fcn_resnet50'"):
        build_network("torchvision:fcn_resnet50")


def test_timm_networks():
    torchvision_or_skip()
    pytest.importorskip("timm", reason="timm is not installed (extra 'vision')")
    network = build_network("timm:resnet10t.c3_in1k", {}, num_classes=6, channels=1)
    assert isinstance(network, nn.Module)
    assert network.eval()(torch.zeros(1, 1, 64, 64)).shape == (1, 6)
    with pytest.raises(InputError, match=r"perhaps you meant .*'resnet18'"):
        build_network("timm:resnet_18")
    with pytest.raises(InputError, match="no architecture 'timm:hf-hub:a/b'"):
        build_network("timm:hf-hub:a/b")
    with pytest.raises(InputError, match=r"failed with .*depht"):
        build_network("timm:resnet18", {"depht": 3})


def test_torchvision_still_works_after_the_guard():
    torchvision_or_skip()
    transforms = __import__("torchvision.transforms.functional", fromlist=["resize"])
    assert transforms.resize(torch.zeros(3, 8, 8), [4, 4]).shape == (3, 4, 4)
    assert import_torchvision() is import_torchvision()
