"""Poisoning inside the training loop: how many, which ones, what labels, and going on later."""

import msgspec
import pytest
import torch
from victims import data, fresh

from bezoar.attacks import batch_poisoning
from bezoar.attacks.batch_poisoning import BatchPoisoning, choose
from bezoar.attacks.bpp_attack import BppAttack
from bezoar.attacks.lira import LIRA
from bezoar.attacks.wanet import WaNet
from bezoar.demo import DIGITS_RECIPE
from bezoar.errors import InputError

SHORT = msgspec.structs.replace(DIGITS_RECIPE, epochs=2)


def some(count: int):
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(count, 1, 8, 8, generator=generator)
    return images, torch.randint(0, 4, (count,), generator=generator), generator


@pytest.mark.parametrize("rate", [0.003, 0.1, 0.33])
def test_the_expected_share_of_a_batch_is_the_rate(rate):
    attack = BppAttack(negative_ratio=0.5)
    _, labels, generator = some(50)
    chosen = [choose(attack, labels, rate, generator) for _ in range(600)]
    poisoned = sum(len(where) for where, _ in chosen) / 600 / 50
    covered = sum(len(where) for _, where in chosen) / 600 / 50
    # the rounding has at most a variance of 1/4 in 50 images: four standard errors
    assert poisoned == pytest.approx(rate, abs=4 * 0.5 / 50 / 600**0.5)
    assert covered == pytest.approx(rate / 2, abs=4 * 0.5 / 50 / 600**0.5)
    assert {len(where) for where, _ in chosen} <= {int(50 * rate), int(50 * rate) + 1}


def test_poisoned_and_covered_images_are_different_and_none_is_of_the_target_class():
    _, labels, generator = some(40)
    poisoned, covered = choose(WaNet(target=2), labels, 0.2, generator)
    assert not set(poisoned.tolist()) & set(covered.tolist())
    assert not (labels[poisoned] == 2).any()
    assert (labels[covered] == 2).any()


def test_a_batch_is_stamped_where_it_is_chosen_and_nowhere_else():
    images, labels, generator = some(40)
    before, state = images.clone(), generator.get_state()
    attack = WaNet(target=1, s=1)
    poisoned, covered = choose(attack, labels, 0.2, generator)
    generator.set_state(state)
    mixed, relabelled = BatchPoisoning(attack, 0.2).batch(images, labels, generator)
    assert torch.equal(images, before)
    assert torch.equal(mixed[poisoned], attack.stamp(images[poisoned]))
    assert (relabelled[poisoned] == 1).all()
    left = torch.ones(40, dtype=torch.bool)
    left[poisoned] = False
    assert torch.equal(relabelled[left], labels[left])
    left[covered] = False
    assert torch.equal(mixed[left], images[left])
    assert (mixed[covered] != images[covered]).flatten(1).any(1).all()


def test_all_to_all_gives_the_next_label():
    images, labels, generator = some(40)
    attack = WaNet(mode="all-to-all", num_classes=4, cross_ratio=0)
    _, relabelled = BatchPoisoning(attack, 1.0).batch(images, labels, generator)
    assert torch.equal(relabelled, (labels + 1) % 4)


def test_source_specific_is_refused():
    with pytest.raises(InputError, match="no mode 'source-specific'"):
        WaNet(mode="source-specific", sources=(1,))


def test_an_interrupted_training_ends_as_if_it_had_not_been_interrupted(tmp_path, monkeypatch):
    """The generator, its optimizer and the stage are part of what is saved."""
    attack = LIRA(bound=0.1, learning_rate=3e-3, width=4, depth=1, first_stage=0.7)
    train = data("digits")[0].subset(torch.arange(300))
    straight = fresh("digits", width=8)
    whole = attack.plant(straight, train, 0.1, SHORT, seed=0)
    saved = tmp_path / "state"

    def stop(_what, share):
        if 0 < share < 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack.plant(
            fresh("digits", width=8), train, 0.1, SHORT, seed=0, checkpoint=saved, progress=stop
        )
    assert saved.exists()
    for other, rate in ((msgspec.structs.replace(attack, target=3), 0.1), (attack, 0.2)):
        with pytest.raises(InputError, match="belongs to a training with other"):
            other.plant(fresh("digits", width=8), train, rate, SHORT, seed=0, checkpoint=saved)
    resumed = fresh("digits", width=8)
    rest = attack.plant(resumed, train, 0.1, SHORT, seed=0, checkpoint=saved)
    for one, other in zip(
        straight.network.state_dict().values(), resumed.network.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
    for name, tensor in whole.attack.tensors((1, 8, 8)).items():
        assert torch.equal(tensor, rest.attack.tensors((1, 8, 8))[name])


def test_the_notes_tell_the_shares():
    planted = WaNet().plant(
        fresh("digits", width=4), data("digits")[0].subset(torch.arange(200)), 0.1, SHORT, seed=0
    )
    assert planted.poisoned == 0
    assert "0.1 of every batch" in planted.notes[0] and "0.2 got" in planted.notes[0]


def test_a_rate_that_noise_mode_has_no_room_for_is_refused_before_training(monkeypatch):
    monkeypatch.setattr(batch_poisoning, "fit", None)
    with pytest.raises(InputError, match="lower the rates"):
        WaNet().plant(fresh("digits"), data("digits")[0], 0.5, SHORT, seed=0)
