"""What is expected of each method that repairs: settings for tests, and what it cannot do."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from msgspec.structs import replace
from public_digits import SMALL_GAN

from bezoar.generators import AdversarialTraining
from bezoar.methods import (
    ANP,
    CLP,
    DHBE,
    FST,
    FTSAM,
    IBAU,
    MMBD,
    NAD,
    NPD,
    RNP,
    SAU,
    TAC,
    TSBD,
    BtiDbf,
    BtiDbfP,
    FinePruning,
    FineTuning,
    FreD,
    JointUnlearning,
    Method,
    NeuralCleanse,
    PlaneWaves,
    SmoothPattern,
    SyntheticUnlearning,
    Weights,
)
from bezoar.methods.anp_masks import MaskLearning
from bezoar.methods.bti_dbf_decoupling import Decoupling
from bezoar.methods.bti_dbf_generators import GeneratorInversion
from bezoar.methods.bti_dbf_purifying import Purifying
from bezoar.methods.bti_dbf_unlearning import GeneratedUnlearning
from bezoar.methods.fred_selection import Selection
from bezoar.methods.fred_settings import Inversion as SampleInversion
from bezoar.methods.i_bau_unlearning import PatternUnlearning
from bezoar.methods.neural_cleanse_schedule import Inversion
from bezoar.methods.rnp_pruning import Pruning
from bezoar.methods.rnp_recovering import Recovering
from bezoar.methods.rnp_tuning import Tuning
from bezoar.methods.rnp_unlearning import Unlearning
from bezoar.methods.sau_examples import Examples
from bezoar.methods.smooth_inversion import SmoothInversion
from bezoar.methods.synthesis import Synthesis
from bezoar.methods.universal_pattern import Ascent
from bezoar.training import Recipe


@dataclass(frozen=True)
class Row:
    """What is expected of one method.

    Attributes:
        quick: the method with settings that take a moment, for tests that need no good repair.
        full: settings that repair the fixture, where the default is not made for it; `why` says
            why not. None takes the default.
        removes: whether it gets rid of the backdoor of the fixture; if not, `why` says why.
        only_clean_images: whether the network sees nothing but (flipped) clean images; methods that
            synthesise images, or find units by random ones, show it others too.
        seedless: why a seed changes nothing; empty where it must.
        only_prunes: whether it changes no weight but those that it prunes; then it may find nothing
            to prune, and must say so.
    """

    quick: Callable[[], Method]
    full: Callable[[], Method] | None = None
    removes: bool = True
    why: str = ""
    only_clean_images: bool = True
    seedless: str = ""
    only_prunes: bool = False


SHORT = Recipe(epochs=2, batch_size=32, learning_rate=0.01)
MOMENT = {  # the steps of BTI-DBF that both of its defenses take
    "decoupling": Decoupling(steps=20),
    "inversion": GeneratorInversion(steps=10),
    "rounds": 2,
    "strong": None,
}
ROWS = {
    "anp": Row(
        lambda: ANP(masks=MaskLearning(iterations=4, batch_size=32), max_drop=0.3),
        full=lambda: ANP(
            masks=MaskLearning(epsilon=0.8, steps=3, learning_rate=0.05, batch_size=128),
            held_out=0.5,
            max_drop=0.04,
        ),
        why="perturbations add up from layer to layer; through the three layers of the fixture the "
        "default ones hardly reach the answers. With 160 units and 300 images the order of the "
        "masks, and what 90 held-out images say of it, are luck: smaller steps on more images, and "
        "more judges",
        only_clean_images=False,
        only_prunes=True,
    ),
    "bti-dbf": Row(
        lambda: BtiDbf(**MOMENT, unlearning=GeneratedUnlearning(recipe=SHORT)),
        full=lambda: BtiDbf(rounds=2, strong=None, ways=(1.0,)),
        why="on 8x8 digits the trigger is hardly stronger than in networks without a backdoor, so "
        "the default goes half of the way",
        only_clean_images=False,
    ),
    "bti-dbf-p": Row(
        lambda: BtiDbfP(
            **MOMENT, purifying=Purifying(recipe=replace(Purifying().recipe, epochs=1))
        ),
        full=lambda: BtiDbfP(rounds=2, strong=None),
        why="on 8x8 digits the trigger is hardly stronger than in networks without a backdoor, so "
        "the default leaves the images as they are",
        only_clean_images=False,
    ),
    "clp": Row(
        CLP,
        removes=False,
        why="in the three narrow layers of the fixture the backdoor is spread over many channels: "
        "no bound lies 3 deviations above the others, and a u that removes it costs the accuracy",
        only_clean_images=False,
        seedless="the bounds are computed from the weights, and nothing is drawn",
        only_prunes=True,
    ),
    "dhbe": Row(
        lambda: DHBE(
            iterations=2,
            probe=2,
            recalibration=2,
            synthesis=Synthesis(steps=20, batch_size=32, width=8),
        ),
        only_clean_images=False,
    ),
    "fine-pruning": Row(
        lambda: FinePruning(recipe=SHORT, tolerance=0.3),
        full=lambda: FinePruning(tolerance=0.2),
        why="only 59 images judge the pruning here, so the default stops early on some draws",
        only_clean_images=False,
    ),
    "fred": Row(
        lambda: FreD(
            count=20,
            tried=1.0,
            fresh=50,
            controls=(),
            training=AdversarialTraining(steps=2, width=4, latent=6, batch_size=8, flip=False),
            inversion=SampleInversion(iterations=2, candidates=64),
            selection=Selection(augmentations=1, perturbations=1),
            removal=IBAU(
                ascent=Ascent(steps=2, batch_size=16),
                unlearning=PatternUnlearning(steps=1, batch_size=16),
                rounds=1,
            ),
        ),
        full=lambda: FreD(
            count=200,
            controls=(),
            training=SMALL_GAN,
            inversion=SampleInversion(iterations=20, candidates=256),
            selection=Selection(augmentations=2),
            removal=IBAU(
                ascent=Ascent(radius=0.36),
                unlearning=PatternUnlearning(strengths="full", fraction=0.1),
                rounds=6,
            ),
        ),
        why="8x8 pixels need a smaller generator, and a larger pattern (as i-bau's row says)",
        only_clean_images=False,
    ),
    "fst": Row(  # a head that is drawn anew knows little after two epochs
        lambda: FST(recipe=Recipe(epochs=4, batch_size=16, learning_rate=0.03, clip_norm=5.0))
    ),
    "ft-sam": Row(
        lambda: FTSAM(recipe=SHORT, rho=1.0),
        full=lambda: FTSAM(rho=4.0),
        why="rho is a distance over all weights, and the fixture has few; at the default of 3 a "
        "fifth of the triggers still works",
    ),
    "i-bau": Row(
        lambda: IBAU(
            ascent=Ascent(steps=5, batch_size=32),
            unlearning=PatternUnlearning(steps=2, batch_size=32),
            rounds=1,
        ),
        full=lambda: IBAU(
            ascent=Ascent(radius=0.36),
            unlearning=PatternUnlearning(strengths="full"),
        ),
        why="of 8x8 pixels a trigger is a larger part than of a photograph: the default radius "
        "does not reach it, and the weaker forms of a pattern even less",
        only_clean_images=False,
    ),
    "joint-unlearning": Row(
        lambda: JointUnlearning(
            generated=ROWS["bti-dbf"].quick(),
            exposed=ROWS["rnp"].quick(),
            inversion=Inversion(epochs=3, steps=2, batch_size=4),
            smooth=SmoothInversion(steps=10),
            recipe=SHORT,
        ),
        only_clean_images=False,
    ),
    "nad": Row(lambda: NAD(teacher=replace(SHORT, epochs=1), student=SHORT)),
    "neural-cleanse": Row(
        lambda: NeuralCleanse(
            inversion=Inversion(epochs=3, steps=2, batch_size=4), images=60, recipe=SHORT
        ),
        only_clean_images=False,
    ),
    "npd": Row(lambda: NPD(recipe=SHORT), only_clean_images=False),
    "rnp": Row(
        lambda: RNP(
            unlearning=Unlearning(learning_rate=0.01, batch_size=64, max_epochs=10),
            recovering=Recovering(epochs=3),
            pruning=Pruning(max_drop=0.3, max_share=0.3),  # in narrow networks each unit matters
            inversion=Inversion(epochs=3, steps=2, batch_size=4),
            tuning=Tuning(recipe=SHORT),
            repeats=1,
        ),
        only_clean_images=False,
    ),
    "sau": Row(
        lambda: SAU(
            examples=Examples(steps=1),
            recipe=replace(SHORT, learning_rate=1e-3, weight_decay=0.0, batch_norm="eval"),
        ),
        full=lambda: SAU(examples=Examples(radius=0.5, step_size=0.25)),
        why="as i-bau's: of 8x8 pixels a trigger is a larger part, and the default radius does not "
        "reach it",
        only_clean_images=False,
    ),
    "synthetic-unlearning": Row(
        lambda: SyntheticUnlearning(
            count=60,
            synthesis=Synthesis(steps=20, batch_size=32, width=8),
            margin=MMBD(steps=3),
            unlearning=replace(ROWS["joint-unlearning"].quick(), wanted="answers"),
        ),
        only_clean_images=False,
    ),
    "tac": Row(lambda: TAC(recipe=SHORT)),
    "tsbd": Row(
        lambda: TSBD(
            unlearning=Unlearning(learning_rate=0.01, batch_size=64, max_epochs=10), recipe=SHORT
        ),
        only_clean_images=False,
    ),
    "ft": Row(
        lambda: FineTuning(recipe=SHORT),
        removes=False,
        why="the baseline: nothing in clean images contradicts the backdoor",
    ),
}


LOOKING: dict[str, Callable[[], Method]] = {  # they remove nothing
    "mm-bd": lambda: MMBD(steps=3),
    "plane-waves": lambda: PlaneWaves(images=20),
    "smooth-pattern": lambda: SmoothPattern(inversion=SmoothInversion(steps=3)),
    "weights": Weights,
}


def sharing(name: str, which: str) -> pytest.MarkDecorator:
    """A full repair takes seconds: the tests that share one run in the same process."""
    return pytest.mark.xdist_group(f"{name} on {which}")
