"""Every network of our own: shapes, sizes, heads, initial weights, one step of training."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.networks.vision import import_timm, import_torchvision

FROM_TORCHVISION = ("resnet-18", "resnet-50", "mobilenet-v2")
FROM_TIMM = ("vit-tiny",)
OWN = (
    "flat-vgg",
    "gn-resnet-8",
    "plain-cnn",
    "preact-resnet-18",
    "preact-resnet-34",
    "resnet-8",
    "resnet-20",
    "small-cnn",
    "vgg-16-bn",
    "vgg-19-bn",
    "wrn-16-1",
    "wrn-16-2",
    "wrn-40-2",
)
NAMES = (*OWN, *FROM_TORCHVISION, *FROM_TIMM)
NARROW = {
    "preact-resnet-18": {"width": 16},
    "preact-resnet-34": {"width": 16},
    "vgg-16-bn": {"width": 16},
    "vgg-19-bn": {"width": 16},
    "vit-tiny": {"depth": 3},
}  # so that the tests which calculate are fast; the others look at the whole
ONE_SIZE = ("flat-vgg", "vit-tiny")  # those that must be told the input size


def build(name, **arguments):
    try:
        if name in FROM_TORCHVISION:
            import_torchvision()
        if name in FROM_TIMM:
            import_timm()
    except InputError:
        pytest.skip("the extra 'vision' is not installed")
    return networks.build(name, **arguments)


def seeded(seed, name, **arguments):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(name, **arguments)


def pixels(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(5))


def on_meta(name, **arguments):
    """The network without its numbers: shapes are all that can be asked of it."""
    with torch.device("meta"):
        return build(name, **arguments).eval()


def shape(network, *images):
    return tuple(network(torch.empty(*images, device="meta")).shape)


def shapes(state):
    return {key: value.shape for key, value in state.items()}


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture(scope="module", params=NAMES)
def built(request):
    """Name and network, its norms settled on a batch; tests that change it take a copy."""
    network = seeded(0, request.param, channels=3, **NARROW.get(request.param, {})).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(pixels(2, 3, 32, 32))
    return request.param, network.eval()


def test_the_table_above_has_all_networks():
    assert set(NAMES) == set(networks.names())


def test_logits_for_ten_classes_and_the_head_that_makes_them(built):
    _, network = built
    classifier = Classifier(
        network, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), input_size=(32, 32)
    )
    weight, bias = classifier.head
    images = pixels(2, 3, 32, 32)
    with torch.no_grad():
        logits, features = classifier(images), classifier.features(images)
    assert logits.shape == (2, 10) and weight.shape == (10, features.shape[1])
    assert float(logits.std(0).min()) > 1e-4, "the logits do not depend on the image"
    assert torch.allclose(features @ weight.T + bias, logits, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_43_classes_and_one_channel(name):
    assert shape(on_meta(name, num_classes=43, channels=1), 2, 1, 32, 32) == (2, 43)


@pytest.mark.parametrize("name", NAMES)
def test_images_of_64_pixels(name):
    arguments = {"input_size": 64} if name in ONE_SIZE else {}
    assert shape(on_meta(name, channels=3, **arguments), 2, 3, 64, 64) == (2, 10)


@pytest.mark.parametrize("name", ONE_SIZE)
def test_a_network_of_one_size_says_so(name):
    classifier = Classifier(build(name, input_size=64), mean=0.5, std=0.5)
    with pytest.raises(InputError, match="cannot take images of 3x32x32"):
        classifier.trace((3, 32, 32))


def test_weights_follow_the_seed_and_can_be_saved_and_loaded(built):
    name, network = built
    again = seeded(0, name, channels=3, **NARROW.get(name, {})).eval()
    expected = dict(network.named_parameters())
    assert all(torch.equal(expected[key], value) for key, value in again.named_parameters())
    images = pixels(2, 3, 32, 32)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
        assert not again(images).any()
        again.load_state_dict(network.state_dict())
        assert torch.equal(again(images), network(images))


def test_one_step_down_the_gradient_lowers_the_loss(built):
    _, network = built
    network = copy.deepcopy(network).train()
    images, labels = pixels(2, 3, 32, 32) * 4 - 2, torch.tensor([3, 9])

    def loss():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)  # the same dropout before and after the step
            return F.cross_entropy(network(images), labels)

    before = loss()
    before.backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    assert all(g is not None and torch.isfinite(g).all() for g in gradients.values())
    length = sum(g.square().sum() for g in gradients.values()).sqrt()
    with torch.no_grad():
        # So short that the change is the gradient's, so long that rounding does not hide it.
        for name, parameter in network.named_parameters():
            parameter -= 0.02 * gradients[name] / length
        assert loss() < before


@pytest.mark.parametrize(
    ("name", "arguments", "published"),
    [
        # tables for CIFAR-10 of repositories built on kuangliu/pytorch-cifar
        ("resnet-18", {}, 11_173_962),
        ("resnet-50", {}, 23_520_842),
        ("vgg-16-bn", {}, 14_728_266),
        ("vgg-19-bn", {}, 20_040_522),
        ("preact-resnet-18", {"final_norm": False}, 11_171_146),
        ("preact-resnet-34", {"final_norm": False}, 21_279_306),
        # those and the 512 scales and 512 shifts of the last norm
        ("preact-resnet-18", {}, 11_171_146 + 1024),
        ("preact-resnet-34", {}, 21_279_306 + 1024),
        # arXiv:1605.07146 has 2.2 M; to the digit in reimplementations
        ("wrn-40-2", {}, 2_243_546),
        # torchvision's MobileNet_V2_Weights.meta["num_params"]
        ("mobilenet-v2", {"num_classes": 1000}, 3_504_872),
        # timm's table for vit_tiny_patch16_224 and deit_tiny_patch16_224: 5.72 M
        (
            "vit-tiny",
            {"num_classes": 1000, "input_size": 224, "patch_size": 16},
            5_717_416,
        ),
        # arXiv:1512.03385, table 6: 0.27 M with option A; its two projections add
        # 16 * 32 + 32 * 64 weights and 2 * (32 + 64) of their norms
        ("resnet-20", {}, 269_722 + 2560 + 192),
    ],
)
def test_as_many_parameters_as_published(name, arguments, published):
    assert count(on_meta(name, **arguments)) == published


@pytest.mark.parametrize("name", ["preact-resnet-18", "preact-resnet-34", "vgg-16-bn", "vgg-19-bn"])
def test_the_width_scales_all_features(name):
    network = build(name, width=4)
    head = Classifier(network, mean=(0.5,) * 3, std=0.5, input_size=(32, 32)).head
    assert head.weight.shape == (10, 32)


def torchvisions(name):
    try:
        models = import_torchvision().models
    except InputError:
        pytest.skip("the extra 'vision' is not installed")
    with torch.device("meta"):
        return models.get_model(name, weights=None)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_resnets_are_torchvisions_but_for_the_stem(name):
    network = on_meta(name.replace("resnet", "resnet-"), num_classes=1000)
    ours, theirs = shapes(network.state_dict()), shapes(torchvisions(name).state_dict())
    assert list(ours) == list(theirs)
    assert [key for key in ours if ours[key] != theirs[key]] == ["conv1.weight"]
    assert ours["conv1.weight"] == (64, 3, 3, 3)
    stem = nn.Sequential(network.conv1, network.maxpool)
    assert shape(stem, 1, 3, 32, 32) == (1, 64, 32, 32)


def test_the_mobilenet_is_torchvisions_but_for_the_strides():
    network = on_meta("mobilenet-v2", num_classes=1000)
    theirs = torchvisions("mobilenet_v2").state_dict()
    assert shapes(network.state_dict()) == shapes(theirs)
    assert shape(network.features[0], 1, 3, 32, 32) == (1, 32, 32, 32)
    assert shape(network.features, 1, 3, 32, 32) == (1, 1280, 4, 4)
    assert on_meta("mobilenet-v2", width=0.5).features[0][0].out_channels == 16


@pytest.mark.parametrize("name", ["vgg16_bn", "vgg19_bn"])
def test_the_features_of_the_vggs_are_torchvisions(name):
    ours = on_meta(name.replace("_", "-").replace("vgg", "vgg-")).features.state_dict()
    assert shapes(ours) == shapes(torchvisions(name).features.state_dict())


def test_the_vision_transformer_takes_its_sizes():
    network = build("vit-tiny", input_size=16, patch_size=8, width=24, depth=2, heads=2)
    assert len(network.blocks) == 2
    assert network.pos_embed.shape == (1, 1 + 4, 24)
    assert network.blocks[0].attn.num_heads == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": 30}, "input_size is 30 and patch_size 4; give an input_size"),
        ({"width": 100}, "width is 100 and heads 3; give a width"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        networks.build("vit-tiny", **arguments)


@pytest.mark.parametrize("name", [*FROM_TORCHVISION, *FROM_TIMM])
def test_without_the_vision_extra_the_error_says_how_to_install_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InputError, match=r"pip install -c .* '\.\[vision\]'"):
        networks.build(name)


@pytest.mark.parametrize("name", ["preact-resnet-18", "wrn-40-2", "vgg-16-bn"])
def test_convolutions_start_from_kaiming_normal_of_the_outputs(name):
    checked = 0
    for module in seeded(3, name).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() >= 9000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            expected = (2 / fan_out) ** 0.5
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=0.05)
            assert module.bias is None or not module.bias.detach().any()
            checked += 1
    assert checked >= 10


def test_the_plain_cnn_keeps_the_size_of_its_activations():
    network = seeded(0, "plain-cnn", width=64)
    assert {type(m) for m in network.layers} == {nn.Conv2d, nn.ReLU}
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer in network.layers:
            x = layer(x)
            # Zero padding takes a little at the border; torch's own weights would lose 6 ** 7.
            if isinstance(layer, nn.ReLU):
                assert 0.4 < float(x.square().mean()) < 2


def test_group_norm_makes_an_image_independent_of_its_batch():
    images = pixels(4, 3, 32, 32)
    alone = {}
    for name in ("gn-resnet-8", "resnet-8"):
        network = seeded(0, name).train()
        with torch.no_grad():
            alone[name] = torch.allclose(network(images)[:1], network(images[:1]), atol=1e-5)
    assert alone == {"gn-resnet-8": True, "resnet-8": False}
    assert not list(build("gn-resnet-8").buffers())


@pytest.mark.parametrize(("width", "groups"), [(32, {2, 4, 8}), (8, {1, 2}), (24, {3, 6})])
def test_group_norm_has_groups_of_sixteen_where_they_divide(width, groups):
    norms = [m for m in build("gn-resnet-8", width=width).modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 9
    assert {norm.num_groups for norm in norms} == groups


def test_a_pre_activation_network_ends_as_the_paper_or_as_public_versions():
    """Without the last norm and ReLU the features have both signs."""
    for final_norm in (True, False):
        network = seeded(0, "preact-resnet-18", width=4, final_norm=final_norm).eval()
        classifier = Classifier(network, mean=(0.5,) * 3, std=0.5, input_size=(32, 32))
        with torch.no_grad():
            features = classifier.features(pixels(4, 3, 32, 32))
        assert bool((features >= 0).all()) is final_norm
