"""The words that a page uses, with what they mean."""

from __future__ import annotations

from bezoar.report.repair_view import Attack, Repair
from bezoar.report.synthesis_view import Synthesis

_GLOSSARY = {
    "p-value": "How often a backdoor-free model would show a class at least this unusual. It is "
    "already corrected for having looked at every class and picked the most unusual one.",
    "Held-out images": "Clean images that were set aside and took no part in the computation; "
    "what is measured on them is not fitted to them.",
    "Target class": "The class that images with the trigger are put into.",
    "95 % interval": "The range of values that fit the number of images counted; with fewer "
    "images it is wider.",
}
_REPAIR_WORDS = {
    "Agreement": "The share of images to which the old and the new model give the same answer, "
    "right or wrong.",
    "Relative change": "The length of the change of a tensor, divided by the tensor's own length.",
}
_SYNTHETIC_WORDS = {
    "Synthetic images": "Images that the method made up to work on, as it takes none. They need "
    "not look like anything, so what is measured on them says little about real ones.",
    "Generated triggers": "Changes of an image that the method made up to find what the model is "
    "sensitive to. The attacker's trigger need not be among them.",
}
_MATERIAL_WORDS = {
    "Public images": "Images of anything but the model's task. Their labels are not used.",
    "Generator": "A network that makes images of random numbers, trained on public images.",
    "Inversion": "A search, led by the model itself, for images that it is sure about.",
    "Stability score": "How probable the class of an image stays when the image, or the model's "
    "weights, are changed a little at random.",
    "Unnaturalness": "How little an image resembles the public ones, in the eyes of the network "
    "that taught the generator, or how unusual its random numbers are. It has no unit.",
    "Shuffling test": "Layers of the model get their channels in random order, which destroys what "
    "an image shows. An image that keeps its label may hold a shortcut, such as a trigger.",
    "Recovered pattern": "One change, the same for all images, that the method found to change the "
    "model's answers. The attacker's trigger need not be like it.",
}
_SYNTHESIS_WORDS = {
    "Synthetic images": "Images that a generator made while the network alone taught it, without "
    "any data. Each stands with the class that the network answers.",
    "Certainty": "The probability that the network gives to its answer. It can be high for images "
    "that show nothing.",
    "Divergence": "How far the images are from the training images in what the network's BatchNorm "
    "layers remember of these, the mean and the variance of each channel. 0 is no difference.",
}
_ATTACK_WORDS = {
    "Trigger": "What the attacker adds to an image so that the model answers the target class.",
    "ACC": "Clean accuracy: the share of images without a trigger that get their true class.",
    "ASR": "Attack success rate: the share of triggered images, not of the target class "
    "themselves, that are put into the target class.",
    "RA": "Robust accuracy: the share of the same triggered images that get their true class.",
    "DER": "Defense effectiveness rating: one plus the fall of ASR minus the loss of ACC, "
    "halved. A rise of ASR or of ACC counts as 0; 50 % means that nothing was won.",
}

ALL_WORDS = {
    "Of every page": _GLOSSARY,
    "Of a repair": _REPAIR_WORDS,
    "Of a repair without images": _SYNTHETIC_WORDS,
    "Of a repair with public images": _MATERIAL_WORDS,
    "Of the check with a known trigger": _ATTACK_WORDS,
    "Of `synthesize`": _SYNTHESIS_WORDS,
}
"""Topic → its words; the documentation's glossary shows all of them."""


def glossary(
    repair: Repair | None, synthesis: Synthesis | None, twin_attack: Attack | None
) -> list[tuple[str, str]]:
    """Each word with its meaning, as far as the page uses it."""
    if synthesis:
        return list(_SYNTHESIS_WORDS.items())
    entries = dict(_GLOSSARY)
    if repair:
        entries |= _REPAIR_WORDS
    if repair and repair.material.told:
        entries |= _MATERIAL_WORDS
    elif repair and repair.synthetic:
        entries |= _SYNTHETIC_WORDS
    if twin_attack or (repair and repair.attack):
        entries |= _ATTACK_WORDS
    return list(entries.items())
