"""NAD: its loss against plain loops, the maps of many networks, and what ports get wrong."""

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
from bezoar.methods import NAD
from bezoar.methods.nad_alignment import Alignment, misalignment
from bezoar.methods.nad_maps import attention, find_maps, watched
from bezoar.networks.vision import import_timm
from bezoar.training import Recipe, fit


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=24, classes=4, shape=(1, 8, 8)):
    raw = torch.randint(0, 256, (count, *shape), generator=draws(), dtype=torch.uint8)
    return ImageSet(raw, torch.arange(count) % classes)


def small(**options):
    torch.manual_seed(0)
    network = networks.build("small-cnn", num_classes=4, width=4, **options)
    return Classifier(network.eval(), mean=0.3, std=0.35).trace((1, 8, 8))


def maps_of(classifier):
    return find_maps(classifier, torch.rand(2, *classifier.input_shape, generator=draws()))


def hooks_in(network):
    return sum(len(module._forward_hooks) for module in network.modules())


MOMENT = NAD(teacher=Recipe(epochs=1, batch_size=8), student=Recipe(epochs=2, batch_size=8))


# -- the attention and the loss --------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_attention_is_the_plain_loop(power):
    maps = torch.randn(3, 5, 2, 4, generator=draws())
    found = attention(maps, power)
    for n in range(3):
        plain = torch.zeros(2, 4)
        for c in range(5):
            for i in range(2):
                for j in range(4):
                    plain[i, j] += abs(float(maps[n, c, i, j])) ** power
        length = math.sqrt(sum(float(v) ** 2 for v in plain.flatten()))
        torch.testing.assert_close(found[n], plain.flatten() / (length + 1e-6))


def test_the_channels_of_tokens_are_last():
    tokens = torch.randn(3, 6, 5, generator=draws())
    torch.testing.assert_close(
        attention(tokens, channels=2), attention(tokens.transpose(1, 2)[..., None], channels=1)
    )


def test_the_attention_of_a_single_position_is_constant():
    """Why such a map is never taken: in ports its loss acts on nothing."""
    maps = torch.randn(4, 6, 1, 1, generator=draws(), requires_grad=True)
    torch.testing.assert_close(attention(maps), torch.ones(4, 1))


def test_misalignment_is_the_mean_over_images_and_positions_and_the_teacher_gets_no_gradient():
    ours = torch.rand(2, 6, generator=draws(1), requires_grad=True)
    theirs = torch.rand(2, 6, generator=draws(2), requires_grad=True)
    gaps = (ours - theirs).detach()
    plain = sum(float(gaps[n, i]) ** 2 for n in range(2) for i in range(6)) / 12
    found = misalignment(ours, theirs, "positions")
    assert found.item() == pytest.approx(plain)
    assert misalignment(ours, theirs, "map").item() == pytest.approx(6 * plain)
    found.backward()
    assert ours.grad is not None and theirs.grad is None


@pytest.mark.parametrize("mean", ["positions", "map"])
def test_beta_means_the_same_for_every_size_of_map_by_default(mean):
    ours, theirs = (torch.rand(2, 5, 4, 4, generator=draws(seed)) for seed in (1, 2))
    finer = [F.interpolate(maps, scale_factor=2, mode="nearest") for maps in (ours, theirs)]
    coarse = float(misalignment(attention(ours), attention(theirs), mean))
    fine = float(misalignment(*(attention(maps) for maps in finer), mean))
    assert fine == pytest.approx(coarse if mean == "map" else coarse / 4, rel=1e-4)


def test_the_gradient_of_the_loss_is_that_of_finite_differences():
    student, teacher = small(), small()
    with torch.no_grad():
        for parameter in teacher.network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draws(3)))
    maps = maps_of(student)
    student.network.double(), teacher.network.double()
    batch, labels = torch.rand(4, 1, 8, 8, generator=draws()).double(), torch.arange(4)
    alignment = Alignment(teacher, maps, (3.0, 5.0), 2.0, "map")
    alignment.next_epoch(0)
    weight = student.network.get_parameter("convs.1.weight")
    step = torch.randn(weight.shape, generator=draws(4)).double()
    with watched(student.network, maps) as ours, watched(teacher.network, maps) as theirs:
        loss = alignment.loss(ours, theirs)

        def value(shift):
            with torch.no_grad():
                weight.add_(shift * step)
                found = loss(student, batch, labels, draws())
                weight.sub_(shift * step)
            return found.item()

        (slope,) = torch.autograd.grad(loss(student, batch, labels, draws()), weight)
        plain = F.cross_entropy(student(batch), labels)
        apart = value(0.0) - plain.item()
        numeric = (value(1e-5) - value(-1e-5)) / 2e-5
    assert apart > 0.01, "the maps are not apart, so this shows nothing"
    assert float((slope * step).sum()) == pytest.approx(numeric, rel=1e-5)


# -- the maps --------------------------------------------------------------------------------------


def layers(name, shape=(3, 32, 32), **options):
    torch.manual_seed(0)
    network = networks.build(name, num_classes=10, channels=shape[0], **options)
    classifier = Classifier(network, mean=0.4, std=0.3).trace(shape)
    before = hooks_in(network)
    found = maps_of(classifier)
    assert hooks_in(network) == before == 0
    return [(one.layer, one.positions) for one in found]


def test_the_maps_of_a_wide_resnet_are_its_three_groups():
    found = layers("wrn-16-1")
    assert found == [("layers.1", (32, 32)), ("layers.3", (16, 16)), ("layers.5", (8, 8))]


def test_the_maps_of_other_networks():
    found = layers("resnet-8", width=4)
    assert found == [("layers.0", (32, 32)), ("layers.1", (16, 16)), ("layers.2", (8, 8))]
    assert layers("small-cnn", (1, 8, 8)) == [("norms.0", (8, 8)), ("norms.2", (4, 4))]
    # a VGG ends in a map of 1x1, which is no map, and its last layers only pool and drop
    found = layers("vgg-16-bn", width=2)
    assert found == [
        ("features.22", (8, 8)),
        ("features.32", (4, 4)),
        ("features.42", (2, 2)),
    ]
    found = layers("flat-vgg", width=2)
    assert found == [
        ("features.5", (32, 32)),
        ("features.13", (16, 16)),
        ("features.21", (8, 8)),
    ]


def test_a_transformer_s_tokens_are_positions_and_its_blocks_count():
    try:
        import_timm()
    except InputError as error:
        pytest.skip(str(error))
    found = layers("vit-tiny", width=12, depth=6, heads=3)
    assert found == [("blocks.1", (65,)), ("blocks.3", (65,)), ("blocks.5", (65,))]


def test_what_only_a_relu_reads_is_rectified():
    first, last = maps_of(small())
    assert first.rectified and last.rectified
    classifier = small()
    with watched(classifier.network, (first,)) as seen:
        classifier(torch.rand(2, 1, 8, 8, generator=draws()))
        assert seen["norms.0"].min().item() == 0
    wide = Classifier(networks.build("wrn-16-1"), mean=0.4, std=0.3).trace((3, 32, 32))
    assert not any(one.rectified for one in maps_of(wide))


def test_maps_with_channels_last_are_told_by_the_image():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.head = nn.Linear(3, 5), nn.Linear(5, 4)

        def forward(self, x):
            return self.head(self.mix(x.permute(0, 2, 3, 1)).mean((1, 2)))

    classifier = Classifier(Last(), mean=0.4, std=0.3).trace((3, 8, 8))
    (found,) = maps_of(classifier)
    assert (found.layer, found.positions, found.channels) == ("mix", (8, 8), 3)


def test_a_network_without_a_map_is_refused_by_name():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(InputError, match="Sequential has no feature map with more than one"):
        NAD().remove(Classifier(network, mean=0.3, std=0.35), images())


def test_the_head_s_own_map_and_modules_that_run_twice_are_no_maps():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.head(self.again(self.again(self.first(x)))).mean((2, 3))

    classifier = Classifier(Twice(), mean=0.3, std=0.35).trace((1, 8, 8))
    assert [one.layer for one in maps_of(classifier)] == ["first"]


# -- the method ------------------------------------------------------------------------------------


def test_running_statistics_move_once_a_step():
    """In ports each map has a forward pass of its own, and statistics move up to four times."""
    repair = MOMENT.remove(small(), images(24), seed=0)
    counts = {
        int(tensor)
        for name, tensor in repair.classifier.network.state_dict().items()
        if name.endswith("num_batches_tracked")
    }
    assert counts == {2 * 3}, "two epochs of three batches"


def test_teacher_and_student_have_epochs_of_their_own():
    """In ports one option sets both."""
    method = replace(MOMENT, teacher=Recipe(epochs=3), student=Recipe(epochs=1))
    record = method.remove(small(), images(), seed=0).record
    assert [len(record["history"][who]) for who in ("teacher", "student")] == [3, 1]
    started = replace(method, start=Recipe(epochs=2))
    record = started.remove(small(), images(), seed=0).record
    assert [len(record["history"][who]) for who in ("teacher", "student")] == [5, 3]


def test_without_weights_it_is_the_fine_tuning_of_the_student():
    recipe = Recipe(epochs=2, batch_size=8)
    method = replace(MOMENT, student=recipe, betas=(0.0, 0.0), augment="recipe")
    found = method.remove(small(), images(), seed=4).classifier.network.state_dict()
    plain = small()
    fit(plain, images(), recipe, seed=4)
    for name, tensor in plain.network.state_dict().items():
        torch.testing.assert_close(found[name], tensor)
    aligned = replace(method, betas=(5.0, 5.0)).remove(small(), images(), seed=4)
    assert not torch.allclose(
        aligned.classifier.network.state_dict()["fc.weight"], plain.network.fc.weight
    )


def test_the_student_s_attention_comes_closer_to_the_teacher_s():
    def last(beta):
        method = replace(MOMENT, betas=(beta, beta), student=Recipe(epochs=8, batch_size=8))
        record = method.remove(small(), images(48), seed=0).record
        return sum(c["y"][-1] for c in record["curves"] if "apart" in c["name"])

    assert last(20.0) < 0.5 * last(0.0)


def test_the_teacher_is_in_eval_mode_and_stays_as_it_was_taught():
    teacher = small()
    before = {name: tensor.clone() for name, tensor in teacher.network.state_dict().items()}
    maps = maps_of(teacher)
    student = small()
    alignment = Alignment(teacher, maps, (1.0, 1.0), 2.0, "map")
    with watched(student.network, maps) as ours, watched(teacher.network, maps) as theirs:
        recipe = Recipe(epochs=1, batch_size=8)
        loss = alignment.loss(ours, theirs)
        fit(student, images(), recipe, seed=0, loss=loss, before_epoch=alignment.next_epoch)
    after = teacher.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in teacher.network.parameters())


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_hooks_are_gone_after_an_exception(error):
    classifier = small()
    maps = maps_of(classifier)
    with watched(classifier.network, maps):
        assert hooks_in(classifier.network) == 2

    def fail():
        with watched(classifier.network, maps):
            raise error

    with pytest.raises(error):
        fail()
    assert hooks_in(classifier.network) == 0


def test_a_network_with_fewer_maps_takes_the_weights_of_the_deepest():
    method = replace(MOMENT, betas=(1.0, 2.0, 3.0))
    record = method.remove(small(), images(), seed=0).record
    assert [one["beta"] for one in record["maps"]] == [2.0, 3.0]
    assert "2 feature maps to align, not 3" in record["flags"][0]
    assert not replace(MOMENT, betas=(2.0, 3.0)).remove(small(), images()).record["flags"]


def test_the_published_settings():
    method = NAD.published()
    assert method.betas == (500.0, 1000.0, 1000.0)
    assert (method.mean, method.power, method.augment) == ("positions", 2.0, "recipe")
    start, teacher, student = method.start, method.teacher, method.student
    assert (start.epochs, start.learning_rate) == (2, 0.1)
    assert (start.epochs + student.epochs, student.learning_rate) == (20, 0.01)
    assert start.epochs + teacher.epochs == 10
    for recipe in (start, teacher, student):
        assert (recipe.batch_size, recipe.momentum, recipe.weight_decay) == (64, 0.9, 1e-4)
        assert recipe.schedule == "constant" and recipe.flip and recipe.crop_padding == 4


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"betas": ()}, "betas is"),
        ({"betas": (1.0, -1.0)}, "betas is"),
        ({"betas": (math.inf,)}, "betas is"),
        ({"power": 0.5}, "power is 0.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        NAD(**setting)
