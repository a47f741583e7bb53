"""Generators as files: what was written is read, a user's own ones work, bad ones are refused."""

import os
import pickle
import tomllib

import pytest
import safetensors.torch
import torch

from bezoar.errors import InputError, UnsafeFileError
from bezoar.generators import PublicGenerator, load_generator, write_generator
from bezoar.networks.generators import drawn
from bezoar.networks.image_generators import ImageCritic, ImageGenerator

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)

SOURCE = """
from torch import nn

def flat(width=6):
    return nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(),
                         nn.Linear(width, 48), nn.Tanh(), nn.Unflatten(1, (3, 4, 4)))

def maps():
    return nn.Sequential(nn.ConvTranspose2d(5, 3, 4), nn.BatchNorm2d(3), nn.Sigmoid())

def not_images():
    return nn.Sequential(nn.Linear(5, 4), nn.Sigmoid())
"""


def own(norm="spectral"):
    return PublicGenerator(
        drawn(lambda: ImageGenerator(SHAPE, latent=6, width=4), 0),
        6,
        SHAPE,
        None if norm is None else drawn(lambda: ImageCritic(SHAPE, width=4, norm=norm), 1),
        apart=True,
        origin={"kind": "a \"test\"", "settings": {"epochs": None, "betas": (0.5, 0.9)},
                "images": {"number": 7, "source": "ünder/\x7f\\x"}, "rate": 1e-05},
    )  # fmt: skip


@pytest.fixture
def user(tmp_path):
    """A description, its source and weights; (name, changes…) → path."""
    (tmp_path / "net.py").write_text(SOURCE)
    names = {}
    exec(SOURCE, names)

    def make(function="flat", arguments=None, **fields):
        torch.manual_seed(0)
        network = names[function](**(arguments or {}))
        torch.save({"ema": network.state_dict(), "epoch": 3}, tmp_path / "net.pt")
        given = {"architecture": f'"net.py:{function}"', "weights": '"net.pt"', "latent": "5"}
        given |= fields
        lines = [f"{name} = {value}" for name, value in given.items() if value is not None]
        (tmp_path / "net.toml").write_text("\n".join(lines))
        make.network = network.eval()
        return tmp_path / "net.toml"

    return make


def z(count=5, latent=5):
    return torch.randn(count, latent, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("norm", ["spectral", "instance", None])
def test_what_was_written_is_read(norm, tmp_path):
    generator = own(norm)
    path = tmp_path / "g.toml"
    write_generator(generator, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.safetensors", "g.toml"]
    read = load_generator(path, device=CPU)
    images = generator(z(latent=6))
    assert torch.equal(read(z(latent=6)), images)
    expected = generator.unnaturalness(z(latent=6), images)
    torch.testing.assert_close(read.unnaturalness(z(latent=6), images), expected)
    assert (read.latent, read.shape, read.apart) == (6, SHAPE, True)
    assert read.origin["kind"] == 'a "test"' and read.origin["rate"] == 1e-05
    assert read.origin["images"] == {"number": 7, "source": "ünder/\x7f\\x"}
    assert read.origin["settings"] == {"betas": [0.5, 0.9]}  # TOML has no None
    assert read.origin["file"]["weights"] == str(tmp_path / "g.safetensors")
    write_generator(read, tmp_path / "again.toml")
    assert torch.equal(load_generator(tmp_path / "again.toml")(z(latent=6)).cpu(), images)


def test_writing_leaves_the_generator_as_it_was(tmp_path):
    generator = own("spectral")
    images = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    before = generator.critic(images)
    write_generator(generator, tmp_path / "g.toml")
    assert generator.critic.norm == "spectral" and torch.equal(generator.critic(images), before)


def test_files_that_cannot_be_written_are_told_and_none_is_half_there(tmp_path, user):
    with pytest.raises(InputError, match="end it in"):
        write_generator(own(), tmp_path / "g.pt")
    with pytest.raises(InputError, match="cannot be written"):
        write_generator(own(), tmp_path / "none" / "g.toml")
    other = load_generator(user(output='"-1..1"'), device=CPU)
    with pytest.raises(InputError, match="only generators that were trained here"):
        write_generator(other, tmp_path / "g.toml")
    assert not list(tmp_path.glob("g*"))


def test_a_users_generator_of_any_range(user):
    read = load_generator(user(output='"-1..1"'), device=CPU)
    torch.testing.assert_close(read(z()), (user.network(z()) + 1) / 2)
    assert read.shape == (3, 4, 4) and read.critic is None and read.apart is None
    assert "not known" in read.independence
    assert read.origin["file"]["weights"].endswith("net.pt")
    assert torch.equal(read.unnaturalness(z(), read(z())), z().square().mean(1))


def test_a_generator_of_maps_gets_latents_as_maps(user):
    read = load_generator(user("maps"), device=CPU)
    torch.testing.assert_close(read(z()), user.network(z()[:, :, None, None]))


def test_facts_of_the_file_and_of_the_caller(user, tmp_path):
    path = user(arguments={"width": 9}, output='"-1..1"', apart="false", entry='"ema"')
    path.write_text(path.read_text() + "\narguments = {width = 9}")
    assert "nothing keeps" in load_generator(path, device=CPU).independence
    assert load_generator(path, device=CPU, apart=True).apart is True
    bare = load_generator(
        tmp_path / "net.pt", device=CPU, architecture=f"{tmp_path}/net.py:flat", latent=5,
        output="-1..1", arguments={"width": 9},
    )  # fmt: skip
    torch.testing.assert_close(bare(z()), load_generator(path, device=CPU)(z()))


@pytest.mark.parametrize(
    ("function", "fields", "said"),
    [
        ("flat", {}, 'output = "-1..1"'),
        ("flat", {"latent": "7", "output": '"-1..1"'}, "is this the latent size"),
        ("flat", {"latent": None}, "does not say the latent"),
        ("flat", {"latent": "0"}, "latent = 0"),
        ("flat", {"latent": '"five"'}, "no valid description"),
        ("flat", {"architecture": None}, "does not say the architecture"),
        ("flat", {"architecture": '"net.py:flut"'}, "perhaps you meant 'flat'"),
        ("flat", {"architecture": '"net.py:maps"'}, "do not fit the network"),
        ("flat", {"latnt": "5"}, "perhaps you meant 'latent'"),
        ("flat", {"output": '"0..255"'}, "no valid description"),
        ("flat", {"weights": '"other.pt"'}, "there is no file"),
        ("flat", {"critic": "{width = 4}"}, "a critic can be named only"),
        ("not_images", {}, "expected one image"),
    ],
)
def test_what_does_not_fit_is_told(user, function, fields, said):
    path = user(function, **fields)
    with pytest.raises(InputError) as caught:
        load_generator(path, device=CPU)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"shape" = [1, 8, 8], ', "", "needs arguments with the shape"),
        ('"width" = 4}\ncritic', '"depth" = 4}\ncritic', "ImageGenerator cannot be built"),
        ('"width" = 4, "norm"', '"width" = 5, "norm"', "do not fit the network"),
        ("[1, 8, 8]", "[3, 8, 8]", "do not fit the network"),
    ],
)
def test_a_changed_description_of_ours_is_told(tmp_path, old, new, said):
    path = tmp_path / "g.toml"
    write_generator(own(), path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError) as caught:
        load_generator(path, device=CPU)
    assert said in str(caught.value)


class Calls:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_nothing_of_a_hostile_file_is_executed(tmp_path, user):
    path, sentinel = user(output='"-1..1"'), tmp_path / "sentinel"
    (tmp_path / "net.pt").write_bytes(pickle.dumps({"ema": {"w": 1}, "x": Calls(sentinel)}))
    with pytest.raises(UnsafeFileError, match="system"):
        load_generator(path, device=CPU)
    assert not sentinel.exists()


def test_weights_that_are_no_numbers_are_told(tmp_path):
    path = tmp_path / "g.toml"
    write_generator(own(), path)
    tensors = safetensors.torch.load_file(tmp_path / "g.safetensors")
    tensors["generator.last.bias"][0] = float("nan")
    safetensors.torch.save_file(tensors, tmp_path / "g.safetensors")
    with pytest.raises(InputError, match="NaN or infinite"):
        load_generator(path, device=CPU)


def test_the_description_is_plain_toml(tmp_path):
    write_generator(own(), tmp_path / "g.toml")
    content = tomllib.loads((tmp_path / "g.toml").read_text(encoding="utf-8"))
    assert content["architecture"] == "bezoar:image-generator"
    assert content["weights"] == "g.safetensors" and content["apart"] is True
