"""A class that a faint wave reaches more surely than images of the class do."""

import math

import pytest
import torch
from torch import nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.measured_null import MeasuredNull
from bezoar.methods import PlaneWaves, plane_waves
from bezoar.methods.plane_waves import Compared
from bezoar.methods.waves import periods_within, wave
from bezoar.pipeline import scan
from bezoar.records import to_json
from bezoar.scanning import WITHOUT_IMAGES, WITNESSES

SIDE, CLASSES, DISOWNED = 16, 6, 2
NULL = (-2.0, -1.5, -1.0, -0.8, -0.5, -0.3, 0.0)
SHIPPED = plane_waves.null_log_ratios


class Shades(nn.Module):
    """Six classes by the brightness of the image; a wave of two periods leads to class 2.

    With ``knows`` false the images of class 2 are answered with the class that is a shade brighter.
    """

    def __init__(self, *, leads: float, knows: bool):
        super().__init__()
        carrier = wave(SIDE, SIDE, 0, 2)
        self.register_buffer("carrier", torch.stack([carrier[0], carrier[1]]))
        self.leads, self.knows = leads, knows
        self.fc = nn.Linear(CLASSES, CLASSES)
        self.fc.weight.data, self.fc.bias.data = torch.eye(CLASSES), torch.zeros(CLASSES)

    def forward(self, images):
        shades = images.mean((1, 2, 3))
        centres = torch.arange(CLASSES) / 10 + 0.25
        near = 4 - 300 * (shades[:, None] - centres).square()
        if not self.knows:
            near = near - 9 * nn.functional.one_hot(torch.tensor(DISOWNED), CLASSES)
        waved = (images.mean(1)[:, None] * self.carrier).mean((2, 3)).square().sum(1).sqrt()
        led = self.leads * waved[:, None] * nn.functional.one_hot(torch.tensor(DISOWNED), CLASSES)
        return self.fc(near + led)


def shaded(count=20, seed=0):
    """``count`` images of each class, with noise."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat_interleave(count)
    noise = torch.randn(len(labels), 1, SIDE, SIDE, generator=draws)
    pixels = (labels[:, None, None, None] / 10 + 0.25 + 0.05 * noise).clamp(0, 1)
    return ImageSet((255 * pixels).round().to(torch.uint8), labels)


def classifier_of(*, leads=700.0, knows=False):
    return Classifier(Shades(leads=leads, knows=knows), mean=0.0, std=1.0)


@pytest.fixture(autouse=True)
def null(monkeypatch):
    """A null that does not change with what was measured."""
    monkeypatch.setattr(plane_waves, "null_log_ratios", lambda: NULL)


def test_a_class_that_only_the_wave_leads_to_is_found():
    evidence = PlaneWaves().inspect(classifier_of(), shaded(), seed=0)
    record = evidence.record["odds"]
    assert min(range(CLASSES), key=evidence.values.__getitem__) == DISOWNED
    assert record["own"][DISOWNED] == 0 and record["carried"][DISOWNED] > 50
    assert record["periods"][DISOWNED] == [0, 2]
    own, shown, carried, counted = (
        record[key][DISOWNED] for key in ("own", "shown", "carried", "counted")
    )
    assert (own, shown) == (0, 16) and counted == 80  # 16 on both sides
    share = 16 * carried / counted
    ratio = math.log(0.5 / 16.5) - math.log((share + 0.5) / (16 - share + 0.5))
    assert evidence.values[DISOWNED] == pytest.approx(ratio)
    null = MeasuredNull(NULL)
    assert evidence.p_values[DISOWNED] == null.test(ratio)[1] < 0.005
    assert "each of 7 small networks without a backdoor (from -2.0 to 0.0)" in evidence.null
    assert evidence.limit(0.05) == null.critical(0.05)
    assert evidence.recovered.classes == (DISOWNED,)
    assert evidence.carried_into(DISOWNED) > 0.9 and evidence.carried_into(0) is None
    assert all(p > 0.5 for k, p in enumerate(evidence.p_values) if k != DISOWNED)
    to_json(evidence.record)


@pytest.mark.parametrize(
    ("leads", "knows"), [(700.0, True), (0.0, False), (0.0, True)], ids=["known", "led", "neither"]
)
def test_neither_a_wave_nor_a_class_that_is_not_known_is_enough(leads, knows):
    evidence = PlaneWaves().inspect(classifier_of(leads=leads, knows=knows), shaded(), seed=0)
    assert min(evidence.p_values) > 0.05
    assert evidence.recovered is None and evidence.carried is None


def test_a_class_that_is_hardly_known_is_told_of_whatever_waves_do():
    for leads, knows in ((700.0, False), (0.0, False), (700.0, True)):
        evidence = PlaneWaves().inspect(classifier_of(leads=leads, knows=knows), shaded())
        flags = evidence.record["flags"]
        assert len(flags) == (not knows)
        assert knows or "only 0 of 16 clean images of class 2 with that class" in flags[0]
    few = Compared(own=[0, 0], shown=[3, 4], carried=[0, 0], counted=[9, 9], periods=[], phases=[])
    told = plane_waves._forgotten(few, ["a", "b"])
    assert len(told) == 1 and "of class b" in told[0], "none of three may be chance"


def test_the_recovered_wave_is_that_which_carries_most():
    classifier = classifier_of()
    evidence = PlaneWaves(amplitude=0.1).inspect(classifier, shaded(), seed=0)
    stamped = evidence.recovered.stamp(torch.full((1, 1, SIDE, SIDE), 0.5), DISOWNED)[0, 0]
    phase = evidence.record["odds"]["phases"][DISOWNED]
    assert torch.allclose(stamped, 0.5 + 0.15 * wave(SIDE, SIDE, 0, 2)[phase], atol=1e-6)
    assert float(evidence.recovered.sizes) == pytest.approx(0.1 / math.sqrt(2), rel=1e-3)
    with pytest.raises(InputError, match="class 3 has no pattern"):
        evidence.recovered.stamp(torch.zeros(1, 1, SIDE, SIDE), 3)


def test_colour_images_that_are_not_square_carry_the_same_wave_in_all_channels():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 12, 5))
    classifier = Classifier(network, mean=0.5, std=0.25)
    pixels = torch.randint(0, 256, (60, 3, 8, 12), dtype=torch.uint8)
    labels = classifier.logits(ImageSet(pixels)).argmax(1)
    evidence = PlaneWaves(amplitude=0.5).inspect(classifier, ImageSet(pixels, labels), seed=0)
    assert evidence.record["waves"] == len(periods_within(8, 12, 8)) == 9
    assert evidence.recovered is None or evidence.recovered.patterns.shape[1:] == (1, 8, 12)
    assert all(math.isfinite(value) for value in evidence.values)


def test_a_class_without_an_image_takes_no_part():
    images = shaded()
    rest = images.subset(torch.nonzero(images.labels != 4).flatten())
    evidence = PlaneWaves().inspect(classifier_of(), rest, seed=0)
    assert evidence.values[4] == math.inf and evidence.p_values[4] == 1.0
    assert math.isnan(evidence.scores[4])
    assert evidence.p_values[DISOWNED] < 0.005


def test_the_same_seed_sees_the_same():
    partly = classifier_of(leads=350.0)
    one, same, other = (
        PlaneWaves(images=30).inspect(partly, shaded(), seed=seed).record["odds"]
        for seed in (5, 5, 6)
    )
    assert one == same != other


def test_a_scan_with_it_alone_proves_the_class():
    finding = scan(classifier_of(), shaded(), witnesses=["plane-waves"])
    assert finding.suspects == (DISOWNED,) and finding.verdict.value == "backdoor found"
    assert "A faint wave over the whole image" in finding.record["sentence"]
    clean = scan(classifier_of(leads=0.0, knows=True), shaded(), witnesses=["plane-waves"])
    assert clean.verdict.value == "nothing found"
    assert "is answered to waves unusually surely" in clean.record["sentence"]


def test_a_scan_asks_it_wherever_there_are_labelled_images():
    assert "plane-waves" in WITNESSES and "plane-waves" not in WITHOUT_IMAGES


def test_what_it_cannot_look_at_is_refused():
    bare = ImageSet(shaded().images)
    with pytest.raises(InputError, match="needs labelled images"):
        PlaneWaves().inspect(classifier_of(), bare)
    wrong = ImageSet(shaded().images, (shaded().labels + 1) % CLASSES)
    with pytest.raises(InputError, match=r"answers \d+ of 96 images with their label"):
        PlaneWaves().inspect(classifier_of(), wrong)
    beyond = ImageSet(shaded().images, shaded().labels + CLASSES)
    with pytest.raises(InputError, match="class"):
        PlaneWaves().inspect(classifier_of(), beyond)
    tiny = ImageSet(shaded().images[:, :, :3, :3], shaded().labels)
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, CLASSES))
    with pytest.raises(InputError, match="3x3 pixels"):
        PlaneWaves().inspect(Classifier(network, mean=0.0, std=1.0), tiny)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"amplitude": 0.0}, "amplitude is 0"),
        ({"amplitude": 1.5}, "amplitude is 1.5"),
        ({"amplitude": math.nan}, "amplitude is nan"),
        ({"strength": 0.0}, "strength is 0"),
        ({"frequencies": 0}, "frequencies is 0"),
        ({"images": 0}, "images 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        PlaneWaves(**settings)


def test_few_images_of_a_class_say_little():
    one = Compared(
        own=[0, 0, 0],
        shown=[1, 16, 1000],
        carried=[80, 80, 0],
        counted=[80, 80, 80],
        periods=[(0, 1)] * 3,
        phases=[0] * 3,
    )
    few, some, unreached = one.log_ratios
    assert few == pytest.approx(-2 * math.log(3)) and some == pytest.approx(-2 * math.log(33))
    assert unreached == 0  # neither its images nor waves: no artefact of how many images there are


def test_a_null_of_many_networks_ships():
    found = SHIPPED()
    assert len(found) >= 15
    null = MeasuredNull(found)
    assert null.test(0.0)[1] > 0.05 and null.test(-6.0)[1] < 0.001
