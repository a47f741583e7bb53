"""NPD: its samples, its loss and its fold against plain versions, and what ports get wrong."""

import math

import pytest
import torch
import torch.nn.functional as F
from msgspec.structs import replace
from torch import nn

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods import NPD
from bezoar.methods.npd_ascent import Ascent, led_astray, most_likely_wrong
from bezoar.methods.npd_layer import PolarizedNetwork, find_place, fold, polarized
from bezoar.methods.npd_training import Polarizer, PolarizerTraining, minus_log_not, terms
from bezoar.networks.preact_resnet import PreActResNet
from bezoar.networks.vision import import_timm
from bezoar.training import Recipe


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=24, classes=4, shape=(1, 8, 8)):
    raw = torch.randint(0, 256, (count, *shape), generator=draws(), dtype=torch.uint8)
    return ImageSet(raw, torch.arange(count) % classes)


def wrap(network, shape=(1, 8, 8)):
    return Classifier(network.eval(), mean=0.3, std=0.35).trace(shape)


def small(**options):
    torch.manual_seed(0)
    return wrap(networks.build("small-cnn", num_classes=4, width=4, **options))


def pixels(count=6, shape=(1, 8, 8)):
    return torch.rand(count, *shape, generator=draws(1))


MOMENT = NPD(recipe=Recipe(epochs=2, batch_size=8, learning_rate=0.1))


# -- the samples -----------------------------------------------------------------------------------


def test_the_target_is_the_most_likely_class_but_the_label():
    logits = torch.randn(20, 5, generator=draws())
    labels = torch.arange(20) % 5
    for row, label, found in zip(logits, labels, most_likely_wrong(logits, labels), strict=True):
        others = [k for k in range(5) if k != label]
        assert int(found) == max(others, key=lambda k: float(row[k]))


@pytest.mark.parametrize("radius", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_samples_are_in_the_ball_and_are_images(radius, steps):
    classifier, batch = small(), pixels()
    batch[0, :, :4] = 0.0  # pixels at the ends of the range
    batch[1, :, :4] = 1.0
    settings = Ascent(radius=radius, steps=steps, rate=0.07, enough=1.0)
    found = led_astray(classifier, batch, torch.arange(6) % 4, settings)
    lengths = (found - batch).flatten(1).norm(dim=1)
    assert float(lengths.max()) <= radius * math.sqrt(64) * (1 + 1e-5)
    assert float(lengths.min()) > 0
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    assert not found.requires_grad


def test_the_steps_are_the_plain_ones():
    """Sign steps from zero towards the target, projected onto the ball; the image is clamped."""
    classifier, batch, targets = small(), pixels(), torch.arange(6) % 4
    settings = Ascent(radius=0.05, steps=3, rate=0.02, enough=1.0)
    found = led_astray(classifier, batch, targets, settings)
    for image, target, one in zip(batch, targets, found, strict=True):
        change = torch.zeros(1, 8, 8)
        for _ in range(3):
            change.requires_grad_()
            logits = classifier((image + change).clamp(0, 1)[None])
            (slope,) = torch.autograd.grad(F.cross_entropy(logits, target[None]), change)
            change = (change - 0.02 * slope.sign()).detach()
            change = change * min(1.0, 0.05 * 8 / float(change.norm()))
        torch.testing.assert_close(one, (image + change).clamp(0, 1))


def test_samples_raise_the_probability_of_their_target():
    classifier, batch, targets = small(), pixels(), torch.arange(6) % 4
    found = led_astray(classifier, batch, targets, Ascent(radius=0.2, steps=4, enough=1.0))

    def probability(shown):
        return classifier(shown).softmax(1)[torch.arange(6), targets]

    assert bool((probability(found) > probability(batch)).all())


def test_the_steps_end_when_enough_are_there():
    seen = []

    def logits(shown):
        seen.append(len(shown))
        return F.one_hot(torch.tensor([0, 0, 1]), 2).float() + 0 * shown.sum((1, 2, 3))[:, None]

    goals = torch.zeros(3, dtype=torch.int64)
    led_astray(logits, pixels(3), goals, Ascent(steps=7, enough=0.6))
    assert len(seen) == 1, "two of three are there: more than 60 %"
    seen.clear()
    led_astray(logits, pixels(3), goals, Ascent(steps=7, enough=0.7))
    assert len(seen) == 7


# -- the loss --------------------------------------------------------------------------------------


def test_the_terms_are_the_plain_formulas():
    plain, astray = (torch.randn(7, 5, generator=draws(seed)) for seed in (1, 2))
    labels, wanted, targets = (
        torch.randint(0, 5, (7,), generator=draws(seed)) for seed in (3, 4, 5)
    )
    p, q = plain.softmax(1), astray.softmax(1)
    sums = [0.0, 0.0, 0.0, 0.0]
    for i in range(7):
        wrong = max((k for k in range(5) if k != labels[i]), key=lambda k: float(q[i, k]))
        sums[0] -= math.log(p[i, labels[i]]) / 7
        sums[1] -= math.log(q[i, wanted[i]]) / 7
        sums[2] -= math.log(1 - q[i, wrong]) / 7
        sums[3] -= math.log(1 - q[i, targets[i]]) / 7
    found = terms(plain, astray, labels, wanted, targets)
    assert [float(one) for one in found] == pytest.approx(sums, rel=1e-4)
    assert min(sums) > 0


def test_going_down_the_loss_lowers_the_probability_of_the_wrong_class():
    """The sign: minus log(1 - p) is a penalty; log(1 - p) would be a reward."""
    logits = torch.tensor([[1.0, 2.0, 0.0]], requires_grad=True)
    wrong = torch.tensor([1])
    (slope,) = torch.autograd.grad(minus_log_not(logits, wrong), logits)
    p = logits.detach().softmax(1)[0, 1]
    lower = (logits.detach() - 0.1 * slope).softmax(1)[0, 1]
    assert float(lower) < float(p)
    assert float(slope[0, 1]) == pytest.approx(float(p), rel=1e-5)


def test_a_wrong_class_of_probability_one_is_still_pushed_down():
    """log(1.0001 - p), as ports write it, has no gradient left where it is needed most."""
    logits = torch.tensor([[0.0, 40.0, 0.0]], requires_grad=True)
    found = minus_log_not(logits, torch.tensor([1]))
    found.backward()
    assert float(found.detach()) == pytest.approx(40 - math.log(2), rel=1e-4)
    assert float(logits.grad[0, 1]) == pytest.approx(1.0)


def test_the_loss_is_the_weighted_sum_and_only_the_polarizer_gets_gradients():
    classifier, labels = small(), torch.arange(6) % 4
    weights = (1.0, 0.5, 0.25, 2.0)
    ascent = Ascent(radius=0.1, steps=2)
    place = find_place(classifier)
    training = PolarizerTraining(classifier, place, ascent, weights, "answer")
    classifier.network.requires_grad_(False)
    loss = training._against(classifier, pixels(), labels, draws())
    loss.backward()
    plain = classifier(pixels())
    goals = most_likely_wrong(plain, labels)
    astray = classifier(led_astray(classifier, pixels(), goals, ascent))
    wanted = terms(plain, astray, labels, plain.argmax(1), goals)
    total = sum(w * float(one) for w, one in zip(weights, wanted, strict=True))
    assert loss.item() == pytest.approx(total, rel=1e-4)
    assert all(p.grad is not None for p in training.polarizer.parameters())
    assert all(p.grad is None for p in classifier.network.parameters())


# -- the polarizer and its fold --------------------------------------------------------------------


def test_the_polarizer_begins_as_the_identity():
    polarizer = Polarizer(5, torch.device("cpu"))
    assert torch.equal(polarizer(), torch.eye(5))
    with torch.no_grad():
        polarizer.scale[2] = 3.0
        polarizer.matrix[2, 4] = 2.0
    assert polarizer()[2, 4].item() == 6.0


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 3), (7, 5, 3, 3), (7, 5, 1, 2)])
def test_the_product_is_the_plain_sum(shape):
    weight, p = torch.randn(shape, generator=draws(1)), torch.randn(5, 5, generator=draws(2))
    plain = torch.zeros(shape)
    for o in range(7):
        for i in range(5):
            for c in range(5):
                plain[o, i] += weight[o, c] * p[c, i]
    torch.testing.assert_close(polarized(weight, p), plain)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "circular"])
def test_the_fold_is_exact_at_the_borders_too(padding_mode):
    layer = nn.Conv2d(5, 3, 3, stride=2, padding=1, padding_mode=padding_mode).double()
    x = torch.randn(2, 5, 9, 9, generator=draws(1)).double()
    p = torch.randn(5, 5, generator=draws(2)).double()
    with torch.no_grad():
        wanted = layer(F.conv2d(x, p[:, :, None, None]))
        layer.weight.copy_(polarized(layer.weight, p))
        torch.testing.assert_close(layer(x), wanted, rtol=1e-12, atol=1e-12)


def with_layer_before(classifier, place, p, batch):
    """The logits with P as a layer of its own, by a hook."""
    module = classifier.network.get_submodule(place.layer)

    def filtered(_module, given):
        if len(place.kernel) == 2:
            return (F.conv2d(given[0], p[:, :, None, None]),)
        return (F.linear(given[0], p),)

    handle = module.register_forward_pre_hook(filtered)
    try:
        return classifier(batch)
    finally:
        handle.remove()


def perceptron():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 6), nn.Linear(6, 4)
    )


MANY = {
    "small-cnn": lambda: (networks.build("small-cnn", num_classes=4, width=4), (1, 8, 8)),
    "resnet-8": lambda: (networks.build("resnet-8", width=4), (3, 16, 16)),
    "wrn-16-1": lambda: (networks.build("wrn-16-1"), (3, 16, 16)),
    "mlp": lambda: (perceptron(), (1, 8, 8)),
}


@pytest.mark.parametrize("kind", MANY)
def test_training_and_repair_are_the_layer_in_the_network(kind):
    torch.manual_seed(0)
    network, shape = MANY[kind]()
    classifier = wrap(network, shape)
    place = find_place(classifier)
    network.double()
    p = (
        torch.eye(place.channels)
        + 0.3 * torch.randn(place.channels, place.channels, generator=draws(3))
    ).double()
    batch = pixels(shape=shape).double()
    with torch.no_grad():
        wanted = with_layer_before(classifier, place, p, batch)
        trained = PolarizedNetwork(classifier, place).logits(batch, p)
        repaired = fold(classifier, place, p)(batch)
        plain = classifier(batch)
    assert not torch.allclose(plain, wanted, rtol=1e-3)
    torch.testing.assert_close(trained, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(repaired, wanted, rtol=1e-10, atol=1e-10)


def test_a_module_with_two_names_is_as_it_was_afterwards():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
            self.again, self.head = self.second, nn.Linear(4, 4)

        def forward(self, x):
            return self.head(self.second(self.first(x).relu()).mean((2, 3)))

    classifier = wrap(Named())
    weight = classifier.network.second.weight
    PolarizedNetwork(classifier, find_place(classifier)).logits(pixels(), torch.zeros(4, 4))
    assert classifier.network.second.weight is weight
    assert isinstance(classifier.network.again.weight, nn.Parameter)


# -- the layer -------------------------------------------------------------------------------------


def found(network, shape=(3, 32, 32), **options):
    torch.manual_seed(0)
    return find_place(wrap(network, shape), **options).layer


def test_the_layer_of_the_paper_is_found():
    blocks = (2, 2, 2, 2)
    network = PreActResNet(4, (4, 4, 4, 4), blocks, 10, 3, final_norm=False)
    assert found(network, late="block") == "layers.7.conv1", "layer4.1.conv1 in other names"
    assert found(network) == "layers.7.conv2"


def test_the_layers_of_other_networks():
    assert found(networks.build("resnet-8", width=4)) == "layers.2.conv2"
    assert found(networks.build("resnet-8", width=4), late="block") == "layers.2.conv1"
    for late in ("convolution", "block"):
        assert found(networks.build("vgg-16-bn", width=2), late=late) == "features.40"
        assert found(networks.build("small-cnn"), (1, 8, 8), late=late) == "convs.2"
    assert found(perceptron(), (1, 8, 8)) == "3"


def test_depthwise_convolutions_are_passed_over_for_1x1_ones():
    stem = (nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=4))
    network = nn.Sequential(*stem, nn.Conv2d(4, 6, 1), nn.Flatten(), nn.Linear(96, 4))
    assert found(network, (1, 8, 8)) == "3"


def test_the_stem_of_a_transformer_is_not_late():
    try:
        import_timm()
    except InputError as error:
        pytest.skip(str(error))
    network = networks.build("vit-tiny", width=12, depth=2, heads=3)
    assert found(network) == "blocks.1.mlp.fc2"


def test_without_a_hidden_layer_it_is_the_final_one():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    assert found(network, (1, 8, 8)) == "3"
    record = MOMENT.remove(wrap(network), images(), seed=0).record
    assert any("no late convolution" in flag for flag in record["flags"])


def test_a_network_that_only_reads_the_image_is_refused_by_name():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(InputError, match="Sequential has no layer that a polarizer can stand"):
        NPD().remove(wrap(network), images())


def test_a_layer_can_be_named_and_a_wrong_name_says_what_there_is():
    assert found(networks.build("small-cnn"), (1, 8, 8), layer="convs.1") == "convs.1"
    for layer, message in (
        ("convs.9", "'convs.9': it is no convolution.*possible are convs.1, convs.2, fc"),
        ("convs.0", "'convs.0': it reads the image itself"),
    ):
        with pytest.raises(InputError, match=message):
            replace(MOMENT, layer=layer).remove(small(), images())
    network = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 4))
    )
    with pytest.raises(InputError, match="passed over: 1: a convolution of 2 groups"):
        replace(MOMENT, layer="1").remove(wrap(network), images())


# -- the method ------------------------------------------------------------------------------------


def test_only_one_weight_of_the_network_changes():
    """In ports the defence is a layer beside the network, and its state dict alone has none."""
    classifier = small()
    repair = MOMENT.remove(classifier, images(), seed=0)
    before, after = classifier.network.state_dict(), repair.classifier.network.state_dict()
    assert list(before) == list(after)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["convs.2.weight"]
    assert repair.record["layer"] == "convs.2" and repair.record["moved"] > 0
    fresh = small()
    fresh.network.load_state_dict(after)
    batch = pixels()
    torch.testing.assert_close(fresh(batch), repair.classifier(batch))


def test_dropout_is_off_and_statistics_stay():
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.Conv2d(4, 4, 3), nn.Flatten(),
        nn.Linear(64, 4),
    )  # fmt: skip
    classifier = wrap(network)
    modes = []
    network[2].forward, plain = (
        lambda x: modes.append(network[2].training) or plain(x),
        network[2].forward,
    )
    training = PolarizerTraining(
        classifier, find_place(classifier), Ascent(), (1.0, 1.0, 1.0, 1.0), "label"
    )
    modes.clear()
    before = {name: b.clone() for name, b in network.named_buffers()}
    training.run(images(), Recipe(epochs=1, batch_size=8), True, 0, lambda *_: None)
    assert modes and not any(modes)
    assert all(torch.equal(before[name], b) for name, b in network.named_buffers())


def test_training_makes_samples_less_successful():
    method = replace(
        MOMENT,
        ascent=Ascent(radius=0.1, enough=1.0),
        recipe=Recipe(epochs=12, batch_size=8, learning_rate=0.1),
    )
    record = method.remove(small(), images(), seed=0).record
    curves = {curve["name"]: curve["y"] for curve in record["curves"]}
    assert curves["loss"][-1] < curves["loss"][0]
    assert len(curves["term target class"]) == 12


def test_a_radius_that_leads_nobody_astray_is_told():
    network = small()
    with torch.no_grad():  # a network that is very sure
        network.network.fc.weight.mul_(0)
        network.network.fc.bias.copy_(torch.tensor([50.0, 0.0, 0.0, 0.0]))
    clean = images()
    clean = ImageSet(clean.images, torch.zeros(24, dtype=torch.int64))
    record = replace(MOMENT, ascent=Ascent(radius=1e-4)).remove(network, clean, seed=0).record
    assert "could be led to another class" in record["flags"][0]


def test_the_published_settings():
    method = NPD.published()
    assert method.weights == (1.0, 0.4, 0.4, 0.4)
    assert (method.wanted, method.late, method.layer) == ("answer", "block", None)
    assert method.ascent.radius * math.sqrt(3 * 32 * 32) == pytest.approx(3)
    assert (method.ascent.steps, method.ascent.rate, method.ascent.enough) == (2, 0.1, 0.6)
    recipe, warm_up = method.recipe, method.warm_up
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (50, 128, 0.01)
    assert (recipe.weight_decay, recipe.momentum, recipe.schedule) == (5e-4, 0.9, "constant")
    assert (warm_up.epochs, warm_up.learning_rate, warm_up.momentum) == (5, 1e-4, 0)
    assert not (recipe.flip or recipe.crop_padding)


def test_the_published_settings_run():
    method = NPD.published()
    short = replace(method, recipe=replace(method.recipe, epochs=2))
    heard = []
    record = short.remove(
        small(), images(), progress=lambda what, share: heard.append((what, share))
    ).record
    assert heard[0][0] == "NPD: warming up" and heard[-1] == ("NPD: training the polarizer", 1.0)
    assert [share for _, share in heard] == sorted(share for _, share in heard)
    assert len(record["curves"][0]["y"]) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NPD(weights=(1.0, -1.0, 0.0, 0.0)), "weights is"),
        (lambda: NPD(weights=(0.0, 0.0, 0.0, 0.0)), "weights is"),
        (lambda: Ascent(radius=0.0), "radius is 0.0"),
        (lambda: Ascent(rate=math.inf), "rate is inf"),
        (lambda: Ascent(steps=0), "steps is 0"),
        (lambda: Ascent(enough=1.5), "enough 1.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
