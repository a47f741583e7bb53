"""The game of DHBE: the plain loop's numbers, whose gradients flow where, which way a step goes."""

import copy
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn

from bezoar import networks
from bezoar.device import to_fast_layout
from bezoar.errors import InputError
from bezoar.methods import DHBE
from bezoar.methods.dhbe_game import Game, Rules, steps_down
from bezoar.methods.dhbe_losses import gap, sensitivity
from bezoar.methods.dhbe_patterns import PatternFamily
from bezoar.methods.dhbe_placement import positions
from bezoar.methods.synthesis import SampleSource, Synthesis
from bezoar.networks.pattern_generators import PatternGenerator

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import plain_dhbe

BATCH, LATENT, WIDTH = 8, 12, 4
PUBLISHED = Rules(
    iterations=3,
    student_steps=5,
    insensitivity=0.1,
    distance="absolute",
    adversary=1.0,
    statistics="all",
    schedule=steps_down,
)
PRIORS = Synthesis(
    steps=0,
    batch_size=BATCH,
    latent=LATENT,
    width=WIDTH,
    statistics=0.0,
    balance=0.0,
    decision=0.0,
    roughness_norm=1e-4,
)


@pytest.fixture(autouse=True)
def double():
    """Rounding in float64, so that a different order of sums cannot decide anything."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def network(name="resnet-8", seed=0, **arguments):
    """Random weights, and running statistics as if it had seen images."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = networks.build(name, **({"width": 4, "num_classes": 4} | arguments))
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, 0.0, 0.3)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
    return made.eval()


def game(
    victim,
    rules=PUBLISHED,
    *,
    shape=(3, 12, 12),
    sizes=(5,),
    scale=3.0,
    each=False,
    rate=0.1,
    generator_rate=1e-3,
    momentum=0.9,
    decay=5e-4,
):
    """A game at its beginning; the same arguments give the same one."""
    teacher = copy.deepcopy(victim).eval().requires_grad_(False)
    student = copy.deepcopy(victim).train()
    for player in (teacher, student):
        to_fast_layout(player, torch.device("cpu"))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        priors = msgspec.structs.replace(PRIORS, learning_rate=generator_rate)
        source = SampleSource(teacher, shape, priors, torch.Generator().manual_seed(2))
        families = [
            PatternFamily(
                PatternGenerator(shape[0], size, latent=LATENT, width=WIDTH),
                shape[1:],
                scale=scale * torch.ones(shape[0], 1, 1),
                each=each,
                learning_rate=generator_rate,
                device=torch.device("cpu"),
                seed=10 * (index + 1),
            )
            for index, size in enumerate(sizes)
        ]
    optimizer = torch.optim.SGD(student.parameters(), rate, momentum=momentum, weight_decay=decay)
    return Game(teacher, student, optimizer, source, families, rules)


def plain_twin(ours, shape, size, mean, std):
    """The plain loop from where ``ours`` begins, with the same draws."""

    def latents(seed):
        draws = torch.Generator().manual_seed(seed)
        while True:
            yield torch.randn((BATCH, LATENT), generator=draws)

    def corners(seed):
        draws = torch.Generator().manual_seed(seed)
        while True:
            corner = positions(1, (size, size), shape[1:], draws, each=False)
            yield tuple(corner[0].tolist())

    return plain_dhbe.PlainGame(
        *(
            copy.deepcopy(player).to(memory_format=torch.contiguous_format)
            for player in (
                ours.teacher,
                ours.student,
                ours.source.generator,
                ours.families[0].generator,
            )
        ),
        mean=mean,
        std=std,
        latents=latents(2),
        pattern_latents=latents(10),
        corners=corners(11),
        settings=plain_dhbe.Settings(iterations=ours.rules.iterations),
    )


def states(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], value) for name, value in second.items())


def assert_close(first, second, relative=1e-8):
    for name, value in first.items():
        scale = value.double().abs().max().clamp_min(1e-3)
        worst = (value.double() - second[name].double()).abs().max()
        assert worst <= relative * scale, (name, float(worst / scale))


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    ("name", "shape", "size"), [("resnet-8", (3, 12, 12), 5), ("small-cnn", (1, 8, 8), 3)]
)
def test_three_iterations_are_those_of_the_plain_loop(name, shape, size, together):
    victim = network(name, channels=shape[0])
    mean = torch.linspace(0.4, 0.5, shape[0]).view(-1, 1, 1)
    std = torch.linspace(0.2, 0.3, shape[0]).view(-1, 1, 1)
    rules = replace(PUBLISHED, together=together)
    ours = game(victim, rules, shape=shape, sizes=(size,), scale=1 / std)
    plain = plain_twin(ours, shape, size, mean, std)
    start = states(ours.student)
    seen = []
    for iteration in range(3):
        seen.append(tuple(map(float, plain.play(iteration))))
        ours.play(iteration)
    assert seen == [
        (pytest.approx(float(d), rel=1e-8), pytest.approx(float(r), rel=1e-8))
        for d, r in zip(ours.curves.gap, ours.curves.sensitivity, strict=True)
    ]
    for theirs, mine in (
        (plain.student, ours.student),
        (plain.sampler, ours.source.generator),
        (plain.patterner, ours.families[0].generator),
    ):
        assert_close(theirs.state_dict(), mine.state_dict())
    with pytest.raises(AssertionError):
        assert_close(start, ours.student.state_dict(), 1e-3)  # there was something to compare
    assert same(ours.teacher.state_dict(), plain.teacher.state_dict())
    assert same(ours.teacher.state_dict(), victim.state_dict())
    counted = {int(value) for key, value in states(ours.student).items() if key.endswith("tracked")}
    assert counted == {3 * 13}  # 5 clean, 5 stamped, 1 of G and 2 of G_p, as the spec counts them


def test_the_published_preset_has_the_numbers_of_the_plain_loop():
    preset, plain = DHBE.published(), plain_dhbe.Settings()
    assert (preset.iterations, preset.student_steps) == (plain.iterations, plain.student_steps)
    assert preset.insensitivity == plain.insensitivity and preset.adversary == 1.0
    assert preset.learning_rate == plain.student_rate
    assert (preset.momentum, preset.weight_decay) == (0.9, 5e-4)
    assert preset.pattern_rate == preset.synthesis.learning_rate == plain.generator_rate
    assert preset.synthesis.roughness_norm == plain.roughness_norm
    assert (preset.distance, preset.statistics, preset.placement) == ("absolute", "all", "batch")
    assert preset.synthesis.batch_size == 256


@pytest.mark.parametrize("statistics", ["all", "clean"])
@pytest.mark.parametrize("distance", ["absolute", "squared"])
def test_one_call_for_several_batches_gives_the_numbers_of_several(statistics, distance):
    rules = replace(PUBLISHED, student_steps=2, statistics=statistics, distance=distance)
    played = []
    for together in (False, True):
        each = game(network(), replace(rules, together=together), sizes=(2, 3, (12, 12)), each=True)
        for iteration in range(2):
            each.play(iteration)
        played.append(each)
    apart, together = played
    assert_close(states(apart.student), states(together.student))
    assert_close(states(apart.source.generator), states(together.source.generator))
    for first, second in zip(apart.families, together.families, strict=True):
        assert_close(states(first.generator), states(second.generator))


def parameters(network):
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def gradients(network):
    return {name: value.grad.clone() for name, value in network.named_parameters()}


@pytest.mark.parametrize("statistics", ["all", "clean"])
@pytest.mark.parametrize("together", [False, True])
def test_every_step_changes_its_own_player_alone(statistics, together):
    ours = game(network(), replace(PUBLISHED, statistics=statistics, together=together))
    sampler, patterner = ours.source.generator, ours.families[0].generator
    seen = {}

    def after(optimizer, name):
        step = optimizer.step

        def stepping():
            step()
            seen[name] = [parameters(player) for player in (ours.student, sampler, patterner)]
            if name == "student":
                seen["gradients"] = gradients(ours.student)

        optimizer.step = stepping

    after(ours.optimizer, "student")
    after(ours.source.optimizer, "sampler")
    start = [parameters(player) for player in (ours.student, sampler, patterner)]
    teacher = states(ours.teacher)
    ours.play(0)
    end = [parameters(player) for player in (ours.student, sampler, patterner)]
    by_student, by_sampler = seen["student"], seen["sampler"]
    changed = [
        [not same(*pair) for pair in zip(*both, strict=True)]
        for both in ((start, by_student), (by_student, by_sampler), (by_sampler, end))
    ]
    assert changed == [[True, False, False], [False, True, False], [False, False, True]]
    # The last gradients that the student got are those of its own last step.
    assert same(gradients(ours.student), seen["gradients"])
    assert same(teacher, states(ours.teacher))
    assert all(parameter.grad is None for parameter in ours.teacher.parameters())
    assert all(parameter.requires_grad for parameter in ours.student.parameters())
    assert not any("forward" in vars(module) for module in ours.student.modules())


@pytest.mark.parametrize("together", [False, True])
def test_with_clean_statistics_only_the_students_clean_batches_count(together):
    rules = replace(PUBLISHED, student_steps=3, statistics="clean", together=together)
    still = {"rate": 0.0, "decay": 0.0}
    ours, twin = game(network(), rules, **still), game(network(), rules, **still)
    ours.play(0)
    with torch.no_grad():
        for batch in twin.source.images(3).chunk(3):
            twin.student(batch)
    assert_close(states(ours.student), states(twin.student), 1e-12)
    counted = {int(v) for k, v in states(ours.student).items() if k.endswith("tracked")}
    assert counted == {3}
    everything = game(network(), replace(rules, statistics="all"), **still)
    everything.play(0)
    with pytest.raises(AssertionError):
        assert_close(states(everything.student), states(twin.student), 1e-3)


class Plain(nn.Module):
    """Without batch statistics, so that each branch's gradient can be computed apart."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)).mean((2, 3)))


@pytest.mark.parametrize("distance", ["absolute", "squared"])
@pytest.mark.parametrize("together", [False, True])
def test_only_the_stamped_branch_carries_the_gradient_of_r(distance, together):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        victim = Plain()
    rules = replace(PUBLISHED, insensitivity=2.0, distance=distance, together=together)
    ours = game(victim, rules, rate=1.0, momentum=0.0, decay=0.0)
    images, wanted, stamps = ours._batches()[0]
    weights = list(copy.deepcopy(ours.student).parameters())
    by_hand = copy.deepcopy(ours.student)
    clean, stamped = by_hand(images), by_hand(images + stamps)
    power = 1 if distance == "absolute" else 2
    change = (stamped - clean.detach()).abs().pow(power).mean()
    both = (stamped - clean).abs().pow(power).mean()
    expected = torch.autograd.grad(2.0 * change, by_hand.parameters(), retain_graph=True)
    symmetric = torch.autograd.grad(2.0 * both, by_hand.parameters())
    assert ours._student_step(images, wanted, stamps) == 0  # it still is the teacher: no D
    moved = [old - new for old, new in zip(weights, ours.student.parameters(), strict=True)]
    assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(moved, expected, strict=True))
    assert not torch.allclose(moved[0], symmetric[0], rtol=1e-2)


def test_each_player_moves_its_own_number_its_own_way():
    slow = {"rate": 1e-4, "decay": 0.0, "momentum": 0.0, "generator_rate": 1e-5, "sizes": (3, 5)}
    ours, twin = game(network(), **slow), game(network(), **slow)
    for each in (ours, twin):  # some way into the game, where student and teacher differ
        each.play(0)

    images, wanted, stamps = ours._batches()[0]
    twin._batches()  # the same draws

    def student_loss():
        with torch.no_grad():
            clean, stamped = ours.student(images), ours.student(images + stamps)
        return gap(clean, wanted) + 0.1 * sensitivity(clean, stamped)

    before = student_loss()
    ours._student_step(images, wanted, stamps)
    assert student_loss() < before

    latents = twin.source.latents(BATCH)

    @torch.no_grad()
    def distance():
        made = ours.source.generator(latents)
        return gap(ours.student(made), ours.teacher(made))

    before = distance()
    ours.source.step(ours.student, 1.0)
    assert distance() > before

    twin.student.load_state_dict(ours.student.state_dict())
    twin.source.generator.load_state_dict(ours.source.generator.state_dict())
    before = ours._pattern_step()
    for old, new in zip(twin.families, ours.families, strict=True):
        old.generator.load_state_dict(new.generator.state_dict())
    assert twin._pattern_step() > before  # new patterns, the same draws


def test_the_adversary_has_a_weight_and_can_be_left_out():
    def moved(weight, student=True):
        ours = game(network())
        ours.play(0)
        before = parameters(ours.source.generator)
        ours.source.optimizer = torch.optim.SGD(ours.source.generator.parameters(), 1.0)
        ours.source.step(ours.student if student else None, weight)
        after = parameters(ours.source.generator)
        return torch.cat([(after[name] - before[name]).flatten() for name in before])

    priors, once, twice = moved(0.0), moved(1.0), moved(2.0)
    assert torch.allclose(twice - priors, 2 * (once - priors), atol=1e-12)
    assert (once - priors).abs().max() > 1e-4
    assert torch.equal(moved(1.0, student=False), priors)


def test_a_squared_r_is_the_mean_of_squares():
    rules = replace(PUBLISHED, distance="squared")
    ours, twin = game(network(), rules), game(network(), rules)
    images = twin.source.images()
    with torch.no_grad():
        clean = twin.student(images)
        moves = twin.student(images + twin.families[0].stamps(BATCH)[0]) - clean
    assert float(ours._pattern_step()) == pytest.approx(float((moves**2).mean()))
    assert float((moves**2).mean()) != pytest.approx(float(moves.abs().mean()), rel=1e-2)


def test_the_published_rates_fall_after_the_published_iterations():
    falls = [steps_down(i / 15_000) for i in (0, 8_999, 9_000, 11_999, 12_000, 14_999)]
    assert falls == [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    ours = game(network(), replace(PUBLISHED, iterations=5, student_steps=1), sizes=(2, 3))
    optimizers = (ours.optimizer, ours.source.optimizer, *(f.optimizer for f in ours.families))
    for iteration, factor in enumerate((1.0, 1.0, 1.0, 0.1, 0.01)):
        ours.play(iteration)
        rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
        assert rates == pytest.approx([0.1 * factor, *([1e-3 * factor] * 3)])


def test_the_record_has_a_point_for_each_iteration():
    ours = game(network(), replace(PUBLISHED, student_steps=1))
    held = []
    step = ours.source.step

    def counting(*players):
        logits = step(*players)
        held.append((float(logits.abs().mean()), len(set(logits.argmax(1).tolist())) / 4))
        return logits

    ours.source.step = counting
    for iteration in range(2):
        ours.play(iteration)
    curves = ours.record()["curves"]
    assert [curve["x"] for curve in curves] == [[1, 2]] * 4
    distance, change, size, classes = (curve["y"] for curve in curves)
    assert distance == [float(value) for value in ours.curves.gap] and min(distance) > 0
    assert change == [float(value) for value in ours.curves.sensitivity] and min(change) > 0
    assert list(zip(size, classes, strict=True)) == held


def test_a_batch_that_is_too_small_for_its_families_is_refused():
    with pytest.raises(InputError, match=r"batch of 8 is shared by 5 families.*at least 10"):
        game(network(), sizes=(2, 3, 4, 5, 6)).play(0)
