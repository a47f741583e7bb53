import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bezoar.errors import InputError
from bezoar.evaluation import evaluate
from bezoar.images import ImageSet
from bezoar.methods import NeuralCleanse, neural_cleanse
from bezoar.methods.neural_cleanse_inversion import inverted_for
from bezoar.methods.neural_cleanse_schedule import Inversion
from bezoar.methods.neural_cleanse_triggers import Triggers
from bezoar.methods.neural_cleanse_unlearning import unlearning_loss
from bezoar.proving import Prover
from bezoar.statistics import mad_outliers
from bezoar.training import Recipe

QUICK = Inversion(epochs=3, steps=2, batch_size=4)
SHORT = Recipe(epochs=1, batch_size=64, learning_rate=0.001)


@pytest.fixture(scope="module")
def evidence(digits):
    return {
        which: NeuralCleanse().inspect(getattr(digits, which), digits.clean, seed=0)
        for which in ("planted", "twin")
    }


def test_the_planted_class_is_found_and_none_in_the_twin(evidence, digits):
    planted, twin = evidence["planted"], evidence["twin"]
    assert int(np.argmin(planted.values)) == digits.attack.target
    assert planted.p_values[digits.attack.target] < 0.01
    assert planted.scores[digits.attack.target] == min(planted.scores) < -4
    assert sorted(planted.p_values)[1] > 0.05 and min(twin.p_values) > 0.05
    assert planted.carried[digits.attack.target] > 0.9


def test_evidence_and_record_agree(evidence):
    found = evidence["planted"]
    logs = mad_outliers([math.log(v) for v in found.values])
    assert found.scores == logs.scores and found.p_values == logs.p_values
    raw = mad_outliers(found.values)
    assert found.record["anomaly_index"] == [-score for score in raw.scores]
    assert found.record["published_flags"] == [score < -2 for score in raw.scores]
    assert found.record["norms"] == list(found.values) == found.recovered.norms.tolist()
    for key in ("success", "counted_images", "lambda", "epochs"):
        assert len(found.record[key]) == 10
    assert found.record["image_passes"] <= 10 * 1440
    assert all(seconds > 0 for seconds in found.record["seconds"].values())


def test_some_classes_are_compared_among_themselves_and_the_others_take_no_part(digits):
    chosen = (2, 4, 6, 7, 9)
    method = NeuralCleanse(inversion=QUICK, classes=chosen)
    found = method.inspect(digits.planted, digits.clean)
    inside = [found.values[k] for k in chosen]
    tested = mad_outliers([math.log(v) if v > 0 else math.inf for v in inside])
    assert tuple(found.p_values[k] for k in chosen) == tested.p_values
    for k in set(range(10)) - set(chosen):
        assert found.values[k] == math.inf and found.p_values[k] == 1.0
        assert math.isnan(found.scores[k]) and found.carried_into(k) is None
    assert found.recovered.classes == chosen and len(found.record["norms"]) == 10
    with pytest.raises(InputError, match="at least 4 different ones"):
        NeuralCleanse(classes=(1, 1, 2, 3))
    with pytest.raises(InputError, match=r"target_class is 10"):
        NeuralCleanse(inversion=QUICK, classes=(1, 2, 3, 10)).inspect(digits.twin, digits.clean)


def test_the_published_preset_tests_the_norms_themselves(digits):
    published = NeuralCleanse.published()
    assert published.inversion == Inversion.published() and published.share == 0.2
    method = NeuralCleanse(inversion=QUICK, outliers="published")
    found = method.inspect(digits.planted, digits.clean)
    assert found.scores == mad_outliers(found.values).scores


def test_it_runs_without_labels_and_on_so_many_images(digits):
    method = NeuralCleanse(inversion=QUICK, images=50)
    record = method.inspect(digits.planted, ImageSet(digits.clean.images)).record
    assert all(30 < count < 50 for count in record["counted_images"])  # 50, less one class
    more = NeuralCleanse(inversion=QUICK, images=None).inspect(digits.planted, digits.clean).record
    assert min(more["counted_images"]) > 180


def test_no_image_that_judges_a_trigger_is_inverted_on(digits, monkeypatch):
    seen = []

    def noting(classifier, images, *arguments, **options):
        seen.append(images)
        return inverted_for(classifier, images, *arguments, **options)

    monkeypatch.setattr(neural_cleanse, "inverted_for", noting)
    NeuralCleanse(inversion=QUICK, images=60).inspect(digits.planted, digits.clean, seed=3)
    (fitted,) = ({image.numpy().tobytes() for image in images.images} for images in seen)
    judging = Prover(digits.planted, digits.clean, seed=3).held_out
    assert len(fitted) == 60 and len(judging) >= 50
    assert not fitted & {image.numpy().tobytes() for image in judging.images}


def triggers_with(norms, success=None):
    count = len(norms)
    return Triggers(
        classes=tuple(range(count)),
        masks=torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        patterns=torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)),
        norms=torch.tensor(norms),
        success=torch.tensor(success or [1.0] * count),
        counted=(9,) * count,
        penalties=(0.0,) * count,
        epochs=(1,) * count,
        passes=1,
    )


def test_the_flagged_classes_are_removed_or_else_the_smallest():
    clear = triggers_with([0.5, 9.0, 9.5, 10.0, 10.5, 0.4, 11.0, 9.2, 10.1, 9.8])
    assert NeuralCleanse()._targets(clear) == [5, 0]
    assert NeuralCleanse(outliers="published")._targets(clear) == [5, 0]
    # An index of 2.5 passes the published cut; among ten normal values it is nothing unusual.
    weak = [7.4, 9.0, 9.5, 10.0, 10.5, 9.4, 11.0, 9.2, 10.1, 9.8]
    assert NeuralCleanse(outliers="published")._flagged(triggers_with(weak)) == [0]
    assert NeuralCleanse()._flagged(triggers_with(weak)) == []
    assert NeuralCleanse()._targets(triggers_with(weak)) == [0]
    nothing_works = triggers_with([math.inf] * 5, [0.1, 0.2, 0.9, 0.3, 0.0])
    assert NeuralCleanse()._targets(nothing_works) == [2]


def test_a_named_class_is_the_only_one_that_is_inverted(digits):
    method = NeuralCleanse(target_class=2, inversion=QUICK, recipe=SHORT)
    record = method.remove(digits.planted, digits.clean).record
    assert record["classes"] == record["target_classes"] == [2] and len(record["norms"]) == 1
    with pytest.raises(InputError, match="target_class is 10 and the network has 10 classes"):
        NeuralCleanse(target_class=10).remove(digits.planted, digits.clean)


def test_the_published_unlearning_removes_the_backdoor_too(digits):
    published = NeuralCleanse.published()
    method = NeuralCleanse(
        share=published.share,
        distillation=published.distillation,
        augment=published.augment,
        recipe=published.recipe,
    )
    repair = method.remove(digits.planted, digits.clean, seed=0)
    assert repair.record["target_classes"] == [digits.attack.target]
    assert evaluate(repair.classifier, digits.test, digits.attack).asr <= 0.2


@pytest.mark.parametrize("distillation", [0.0, 0.3, 1.0])
def test_the_loss_equals_its_plain_definition(distillation, digits):
    triggers = triggers_with([1.0, 2.0, 3.0])
    images, labels = digits.clean.images[:9].float() / 255, digits.clean.labels[:9]
    options = {"share": 0.5, "distillation": distillation, "temperature": 2.0}
    original, classifier = digits.twin.copy(), digits.planted.copy()
    loss = unlearning_loss(original, triggers, [2, 0], **options)
    value = loss(classifier, images, labels, torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    which = torch.randint(2, (9,), generator=generator).tolist()
    carries = (torch.rand(9, 1, 1, 1, generator=generator) < 0.5).flatten().tolist()
    assert 0 < sum(carries) < 9
    total = 0.0
    for i in range(9):
        image = images[i : i + 1]
        seen = triggers.stamp(image, [2, 0][which[i]]) if carries[i] else image
        with torch.no_grad():
            answer, wanted = classifier(seen), original(image)
        p, log_q = (wanted / 2).softmax(1), (answer / 2).log_softmax(1)
        divergence = 4 * float((p * (p.log() - log_q)).sum())
        total += (1 - distillation) * float(F.cross_entropy(answer, labels[i : i + 1]))
        total += distillation * divergence
    assert float(value.detach()) == pytest.approx(total / 9, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"share": 1.5}, "share is 1.5"),
        ({"distillation": -0.1}, "distillation -0.1"),
        ({"temperature": 0.0}, "temperature is 0.0; expected more than 0"),
        ({"images": 1}, "images is 1; expected at least 2"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        NeuralCleanse(**wrong)
