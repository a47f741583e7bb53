"""Where attacks on a trained network begin: a network that was trained on clean images."""

from __future__ import annotations

from pathlib import Path

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.training import History, Progress, Recipe, fit


def start_clean(
    classifier: Classifier,
    images: ImageSet,
    recipe: Recipe,
    *,
    seed: int,
    surrogate: Classifier | None,
    checkpoint: Path | None,
    progress: Progress,
) -> History:
    """Gives ``classifier`` the weights of ``surrogate``; trains it where there is none.

    Returns:
        The history of the training; an empty one where weights were copied.

    Raises:
        InputError: the surrogate is another kind of network; or the training diverged.
    """
    if surrogate is None:
        return fit(
            classifier,
            images,
            recipe,
            seed=seed,
            checkpoint=checkpoint,
            progress=progress,
            what="training the clean network",
        )
    try:
        classifier.network.load_state_dict(surrogate.network.state_dict())
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(
            "this attack goes on from the surrogate's weights, and they do not fit the network "
            f"({reason}); give a surrogate of the same architecture, or none"
        ) from None
    classifier.network.eval()
    return History()
