import numpy as np
import pytest
import torch

from bezoar.attacks.spelling import load_attack, save_attack
from bezoar.attacks.stored_pattern import StoredPattern
from bezoar.errors import InputError


def grey(count=2, channels=3, side=5):
    return torch.full((count, channels, side, side), 0.5)


def stored(folder, **values):
    """Replaces one pixel and brightens another."""
    pattern, mask = np.zeros((2, 3, 5, 5), np.float64)
    pattern[:, 0, 0], mask[:, 0, 0] = 0.9, 1.0  # replaced
    pattern[:, 1, 1] = 0.8  # added, and cut off at white
    np.save(folder / "trigger.npy", np.stack([pattern, mask]))
    return StoredPattern(file=str(folder / "trigger.npy"), **values)


def test_it_follows_its_formula(tmp_path):
    stamped = stored(tmp_path).stamp(grey())
    assert stamped[0, 0, 0, 0] == pytest.approx(0.9)
    assert stamped[1, 2, 1, 1] == 1
    assert int((stamped != 0.5).sum()) == 2 * 3 * 2


def test_a_saved_trigger_no_longer_needs_the_file(tmp_path):
    attack = stored(tmp_path, target=3)
    images = torch.rand(2, 3, 5, 5)
    stamped = attack.stamp(images)
    save_attack(attack, tmp_path / "trigger.safetensors", (3, 5, 5))
    (tmp_path / "trigger.npy").unlink()
    loaded = load_attack(tmp_path / "trigger.safetensors")
    assert loaded == attack and torch.equal(loaded.stamp(images), stamped)


def test_it_can_have_alternatives(tmp_path):
    several = np.zeros((3, 2, 3, 5, 5), np.float32)
    several[2, :, :, 4, 4] = 1
    np.save(tmp_path / "triggers.npy", several)
    file = str(tmp_path / "triggers.npy")
    assert torch.equal(StoredPattern(file=file).stamp(grey()), grey())
    assert StoredPattern(file=file, index=2).stamp(grey())[0, 0, 4, 4] == 1
    for index in (3, -1):
        with pytest.raises(InputError, match=f"no alternative {index}"):
            StoredPattern(file=file, index=index).stamp(grey())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((2, 1, 5, 5)), r"shape \(1, 5, 5\) and the images \(3, 5, 5\)"),
        (np.zeros((3, 5, 5)), r"expected \(2, c, h, w\)"),
        (np.zeros((3, 3, 5, 5)), r"expected \(2, c, h, w\)"),
        (np.full((2, 3, 5, 5), "x"), "expected numbers"),
        (np.full((2, 3, 5, 5), None), "cannot be read: Object arrays"),
        (np.full((2, 3, 5, 5), 255, np.uint8), "from 255 to 255; expected pixels in units from 0"),
        (np.full((2, 3, 5, 5), np.nan), "from nan to nan"),
        (-np.ones((2, 3, 5, 5)), r"a mask in \[0, 1\]"),
        (b"PK\x03\x04 half an archive", "cannot be read"),
        (b"", "cannot be read"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_trigger_is_named(tmp_path, content, message):
    path = tmp_path / "trigger.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(InputError, match=message) as caught:
        StoredPattern(file=str(path)).stamp(grey())
    assert "trigger.npy" in str(caught.value)
