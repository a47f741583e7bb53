import math

import msgspec
import pytest
import torch
from torch import nn
from victims import data, planted, twin

from bezoar.attacks.smooth import Smooth, _towards, low_pass
from bezoar.attacks.spelling import load_attack, save_attack
from bezoar.classifier import Classifier
from bezoar.demo import DIGITS_RECIPE
from bezoar.errors import InputError
from bezoar.images import ImageSet

QUICK = msgspec.structs.replace(DIGITS_RECIPE, epochs=8)


def test_the_filter_is_a_gaussian_with_zeros_beyond_the_edges():
    picture = torch.rand(1, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    sigma = 0.3
    deviation = sigma * 5
    radius = math.floor(2.4 * deviation)
    kernel = [math.exp(-(k**2) / (2 * deviation**2)) for k in range(-radius, radius + 1)]
    total = sum(kernel)
    wanted = torch.zeros_like(picture)
    for row in range(5):
        for column in range(6):
            for down in range(-radius, radius + 1):
                for across in range(-radius, radius + 1):
                    if 0 <= row + down < 5 and 0 <= column + across < 6:
                        weight = kernel[down + radius] * kernel[across + radius] / total**2
                        wanted[..., row, column] += (
                            weight * picture[..., row + down, column + across]
                        )
    assert torch.allclose(low_pass(picture, sigma), wanted, atol=1e-6)


def test_deepfool_on_a_linear_network_is_the_shortest_way():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 2))
    classifier = Classifier(network, mean=0.0, std=1.0, input_size=(3, 3))
    image = torch.rand(1, 1, 3, 3)
    here = int(classifier(image).argmax())
    step = _towards(classifier, image, 1 - here)
    weight = network[1].weight[1 - here] - network[1].weight[here]
    gap = (classifier(image)[0, here] - classifier(image)[0, 1 - here]).detach()
    wanted = 1.02 * gap * weight / weight.square().sum()
    assert torch.allclose(step.flatten(), wanted.detach(), atol=1e-5)
    assert int(classifier(image + step).argmax()) == 1 - here
    assert bool((_towards(classifier, image, here) == 0).all())


@pytest.fixture(scope="module")
def result():
    return planted(Smooth(target=3, passes=2, samples=50), 0.1, recipe=QUICK)


def test_the_pattern_is_bright_and_smooth(result):
    pattern = result.planted.attack.tensors((1, 8, 8))["pattern"]
    assert float(pattern.min()) == 0 and float(pattern.max()) == pytest.approx(0.2)
    spectrum = torch.fft.fft2(pattern - pattern.mean()).abs().square()
    low = spectrum[..., [0, 1, 2, -1, -2], :][..., [0, 1, 2, -1, -2]].sum()
    assert float(low / spectrum.sum()) > 0.95, "the power lies in the low frequencies"


def test_it_is_added_to_every_image_and_cut_off(result):
    attack = result.planted.attack
    images = torch.rand(3, 1, 8, 8)
    before = images.clone()
    pattern = attack.tensors((1, 8, 8))["pattern"]
    assert torch.equal(attack.stamp(images), (images + pattern).clamp(0, 1))
    assert torch.equal(images, before)
    assert attack.stamp(images[:0]).shape == (0, 1, 8, 8)


def test_it_finds_the_place_that_moves_a_network_to_the_target():
    network = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    weight = torch.zeros(16, 16)
    weight[:8, :8] = 1 / 64
    with torch.no_grad():
        network[1].weight.copy_(torch.stack([torch.zeros(256), weight.flatten()]))
        network[1].bias.copy_(torch.tensor([0.3, 0.0]))
    surrogate = Classifier(network, mean=0.0, std=1.0, input_size=(16, 16))
    seed = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 130, (40, 1, 16, 16), dtype=torch.uint8, generator=seed)
    images = ImageSet(pixels, torch.arange(40) % 2)
    attack = Smooth(target=1, samples=20).prepare(images, seed=0, surrogate=surrogate)
    pattern = attack.tensors((1, 16, 16))["pattern"][0]
    row, column = divmod(int(pattern.argmax()), 16)
    assert row < 8 and column < 8, "brightest where the target class looks"
    with torch.no_grad():
        stamped = surrogate(attack.stamp(pixels.float() / 255)).argmax(1)
        clean = surrogate(pixels.float() / 255).argmax(1)
    assert float((stamped != clean).float().mean()) >= 0.2


def test_an_image_that_is_answered_with_the_target_already_takes_no_part():
    """There is no step for it, and stretching no pattern to full strength gave NaN."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.stack([torch.zeros(256), torch.full((256,), 1 / 256)]))
        network[1].bias.copy_(torch.tensor([0.5, 0.0]))
    surrogate = Classifier(network, mean=0.0, std=1.0, input_size=(16, 16))
    pixels = torch.full((12, 1, 16, 16), 100, dtype=torch.uint8)
    pixels[::2] = 200  # every other one is answered with class 1, whatever its label
    images = ImageSet(pixels, torch.zeros(12, dtype=torch.int64))
    for seed in range(6):
        attack = Smooth(target=1, samples=12).prepare(images, seed=seed, surrogate=surrogate)
        pattern = attack.tensors((1, 16, 16))["pattern"]
        assert pattern.isfinite().all() and float(pattern.max()) > 0
    answered = ImageSet(pixels[::2].clone(), torch.zeros(6, dtype=torch.int64))
    with pytest.raises(InputError, match="no step towards the target class"):
        Smooth(target=1).prepare(answered, seed=0, surrogate=surrogate)


def test_learning_is_repeatable_and_leaves_the_surrogate_alone(result):
    train, surrogate = data("digits")[0], twin("digits")
    surrogate.network.zero_grad()
    before = {name: value.clone() for name, value in surrogate.network.state_dict().items()}
    again = Smooth(target=3, passes=2, samples=50).prepare(train, seed=0, surrogate=surrogate)
    pattern = result.planted.attack.tensors((1, 8, 8))["pattern"]
    assert torch.equal(again.tensors((1, 8, 8))["pattern"], pattern)
    for name, value in surrogate.network.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(parameter.grad is not None for parameter in surrogate.network.parameters())


def test_a_saved_trigger_stamps_the_same_pixels(result, tmp_path):
    attack = result.planted.attack
    save_attack(attack, tmp_path / "trigger.safetensors", (1, 8, 8))
    loaded = load_attack(tmp_path / "trigger.safetensors")
    images = torch.rand(2, 1, 8, 8)
    assert loaded == attack and torch.equal(loaded.stamp(images), attack.stamp(images))


def test_it_takes_hold_on_digits(result):
    assert result.scores.asr >= 0.9 and result.twin_scores.asr < 0.3
    assert result.scores.acc > result.twin_scores.acc - 0.03


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strength": 0}, r"strength 0 must be in \(0, 1\]"),
        ({"sigma": 2}, r"sigma 2 must be in"),
        ({"fooled": 0}, "fooled 0 must be in"),
        ({"samples": 0}, "samples is 0"),
        ({"passes": 0}, "passes is 0"),
    ],
)
def test_a_wrong_configuration_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        Smooth(**values)


def test_it_has_to_be_learned_first():
    with pytest.raises(InputError, match="has to be learned: plant it, or load"):
        Smooth().stamp(torch.rand(1, 1, 8, 8))
    with pytest.raises(InputError, match="smooth needs a surrogate"):
        Smooth().prepare(data("digits")[0], seed=0)
