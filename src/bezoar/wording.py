"""The words that a method lends to the sentences of a scan, and those that two rooms must share.

Every method looks at another thing: a shift of the last layer's input, a patch on the image. The
verdict, the record and the report are the same for all; what was seen is said in these words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

# How the outcome of ``clean`` begins; of a repair that was written, the report's heading, too.
REPAIRED = "Repaired"
UNMEASURED = "Repaired, accuracy not measured"
SIGNS_LEFT = ", signs of a backdoor left"  # added: by a new scan, old triggers, or a re-tuning
UNCHANGED = "Nothing changed"  # the network is as it was
UNTOUCHED = "Left untouched"  # nothing was found, and nothing was asked for
NOT_ACCEPTED = "Not accepted"
NO_PROOF = "This is no proof that the model has no backdoor"  # where nothing was found


def measured_on(repair: Mapping[str, Any]) -> tuple[str, str]:
    """What a method measured its own work on: images and triggers, both in the plural.

    Args:
        repair: the method's record; ``measured_on`` in it has the keys ``images`` and ``triggers``
            where the words that fit a method without any data do not fit.

    >>> measured_on({"measured_on": {"images": "fresh generated images"}})
    ('fresh generated images', 'generated triggers')
    """
    given = repair.get("measured_on")
    words = given if isinstance(given, Mapping) else {}
    images, triggers = words.get("images"), words.get("triggers")
    return str(images or "synthetic images"), str(triggers or "generated triggers")


def p_in_words(value: float) -> str:
    """A p-value for a sentence.

    >>> p_in_words(0.0123), p_in_words(1e-9)
    ('p = 0.012', 'p < 0.0001')
    """
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.2g}"


def repair_in_words(steps: Sequence[str], share: float) -> str:
    """Repairs one after another, and how far they went on their way.

    >>> repair_in_words(["rnp"], 1.0), repair_in_words(["rnp", "tac"], 0.9)
    ('rnp', 'rnp, then tac, 0.9 of the way')
    """
    return ", then ".join(steps) + ("" if share == 1 else f", {share:g} of the way")


def lost_in_words(repair: Mapping[str, Any]) -> str:
    """What the trials of a repair's record lost, for the head of a column.

    >>> lost_in_words({"judged_on": "labelled images"})
    'Accuracy lost'
    >>> lost_in_words({"judged_on": "unlabelled images"})
    'Answers changed'
    """
    unlabelled = repair.get("judged_on") == "unlabelled images"
    return "Answers changed" if unlabelled else "Accuracy lost"


def signs_left(removed: object, returned: object = None, *, suspected: bool = True) -> str:
    """Whether a repair leaves signs of the backdoor, in a word for a table.

    Args:
        removed: of a record; None where the repair was not looked at afresh, as it could not win.
        returned: likewise, whether a few steps of tuning bring the backdoor back.
        suspected: whether a class was; else there is no sign to be left, as every network has
            triggers that carry some images.

    >>> signs_left(True), signs_left(False), signs_left(None), signs_left(True, True)
    ('no', 'yes', 'not looked', 'after tuning')
    >>> signs_left(False, suspected=False)
    '–'
    """
    if not suspected:
        return "–"
    if removed is None:
        return "not looked"
    if removed is not True:
        return "yes"
    return "after tuning" if returned is True else "no"


def within_a_sentence(title: str) -> str:
    """A title without its first capital, unless that belongs to a name.

    >>> within_a_sentence("Length of the shift"), within_a_sentence("L1 norm of the mask")
    ('length of the shift', 'L1 norm of the mask')
    """
    return title if title[1:2].isupper() or title[1:2].isdigit() else title[:1].lower() + title[1:]


@dataclass(frozen=True, kw_only=True)
class Words:
    """What is said about a method's evidence; the defaults fit any.

    Attributes:
        value: a heading for its values.
        unit: of its values; empty where they are plain numbers.
        absent: stands for an infinite value.
        absence: why there is none; completes "A class without a dot has no value: …".
        scores: the unit of its scores; completes "Class 3: … is 0.8, 6.2 …". Empty leaves the score
            out of the sentences.
        judged: how its p-values allow for the number of classes, which stands in for {classes}.
        unusual: what a flagged class is; completes "None of the 10 classes …".
        exceeds: the same as a comparison; completes "Class 3 …, without the proof".
        looks_for: completes "the scan looks for one class that …".
        carrier: one word for what it recovers.
        means: that in full; begins "… carries most images into class 3".
        rarely: ends that sentence: why it is no accident.
        known: the images that it is recovered from.
        rest: those that show whether it works.
    """

    value: str = "value"
    unit: str = ""
    absent: str = "no value"
    absence: str = "the method found none"
    scores: str = "standard deviations below the other classes"
    judged: str = "corrected for having picked the smallest of {classes}"
    unusual: str = "stands out"
    exceeds: str = "stands out more than in backdoor-free models"
    looks_for: str = "stands out from the others"
    carrier: str = "perturbation"
    means: str = "One perturbation, the same for all images,"
    rarely: str = "backdoor-free models hardly ever show a class so unusual"
    known: str = "a part of the images"
    rest: str = "the rest"


# A perturbation of the last layer's input (TAC).
SHIFT = Words(
    value="shift",
    absent="no shift",
    absence="no such change of the network exists",
    unusual="is unusually easy to reach",
    exceeds="can be reached more easily than backdoor-free models show",
    looks_for="is too easy to reach in the last layer",
    carrier="shift",
    means="A small change of the last layer's input, the same for all images,",
    rarely="backdoor-free models hardly ever show one so small",
    known="four fifths of the images",
)

# Of a test that looks for one unusual class or two (``statistics.one_or_two_small``).
ONE_OR_TWO = "corrected for having picked one or two of {classes}"

# A mask and a pattern in pixel space, judged by the size of the mask (Neural Cleanse).
PATCH = Words(
    value="patch",
    unit="pixels",
    absent="no patch",
    absence="no patch was found that carries enough images into it",
    scores="median absolute deviations below the median class",
    unusual="is unusually easy to reach",
    exceeds="can be reached more easily than backdoor-free models show",
    looks_for="a small patch at a fixed place reaches",
    carrier="patch",
    means="A small patch, the same for all images,",
    rarely="backdoor-free models hardly ever show one so small",
    known="four fifths of the images",
)

# The same where some classes alone were looked at.
PATCH_OF_SOME = replace(
    PATCH,
    absent="not looked at, or none",
    absence="it was not looked at, or no patch was found that carries enough images into it",
    judged="corrected for having picked the smallest of those that were compared",
)

# The class that a network falls back to once it has unlearned the clean images (RNP).
FALLBACK = Words(
    value="lost images that go elsewhere",
    scores="standard deviations below the strongest class of networks without a backdoor",
    judged="against the strongest class of those networks",
    unusual="draws unusually many of the images that the network unlearns",
    exceeds="draws more of the images that the network unlearns than backdoor-free models show",
    looks_for="draws the images that the network unlearns",
    carrier="trigger",
    means="A recovered trigger, the same for all images,",
    rarely="backdoor-free models hardly ever fall to one class like this",
    known="half of the images",
    rest="the other half",
)

# A generator of bounded changes in pixel space, judged by how hard it pushes its class (BTI-DBF).
GENERATED = Words(
    value="pull ratio",
    absent="no trigger",
    absence="the recovered trigger does not lead there",
    scores="standard deviations below networks without a backdoor",
    judged="one trigger for all {classes} classes",
    unusual="is reached by a trigger of unusual strength",
    exceeds="is reached by a stronger trigger than backdoor-free models show",
    looks_for="a bounded change of the pixels leads to with unusual strength",
    carrier="trigger",
    means="One bounded change of the pixels",
    rarely="backdoor-free models hardly ever show one of such strength",
    known="four fifths of the images",
)

# A plane wave on the whole image, judged against the class's own images (plane waves).
WAVE = Words(
    value="log odds ratio",
    absent="no value",
    absence="there is no image of it, or no other",
    scores="standard deviations below the most unusual class of networks without a backdoor",
    judged="against the most unusual class of those networks",
    unusual="is answered to waves unusually surely for how well its own images are known",
    exceeds="is answered to waves more surely, for how well its own images are known, than "
    "backdoor-free models show",
    looks_for="faint waves lead to far more surely than its own images do",
    carrier="wave",
    means="A faint wave over the whole image",
    rarely="backdoor-free models hardly ever answer a wave so surely and the class so badly",
    known="four fifths of the images",
)

# A smooth change of the whole image, judged against those into other classes (smooth pattern).
SMOOTH = Words(
    value="relative strength",
    absent="not looked at, or none",
    absence="no pattern was looked for, or none leads there, or to too few other classes",
    scores="standard deviations below the most unusual class of networks without a backdoor",
    judged="against the most unusual class of those networks",
    unusual="is reached by an unusually weak smooth pattern",
    exceeds="is reached by a weaker smooth pattern than backdoor-free models show",
    looks_for="a smooth change of the whole image leads to with unusual ease",
    carrier="pattern",
    means="One smooth change of the whole image",
    rarely="backdoor-free models hardly ever show one so weak",
    known="four fifths of the images",
)
