"""One backdoored network repaired as ``clean`` does it, and then with a pruning in front.

The task that ``pruning_first.py`` runs for each network.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from measured_models import pool_model
from null_networks import CLEAN_IMAGES

from bezoar.evaluation import compare, evaluate
from bezoar.executors import report
from bezoar.given import HELD_OUT
from bezoar.methods import ANP, CLP, RNP
from bezoar.scanning import scan
from bezoar.surviving import Survivors
from bezoar.trying import Trial, plan_for, try_repairs
from bezoar.verdict import Verdict

PRUNINGS = (CLP(), RNP(), ANP())
MOST_LOST = 0.05  # of accuracy, as ``clean`` has it


def look(*, name: str, seed: int) -> dict[str, Any]:
    """One network: the trials of the plan, and where none ends the search, those with pruning."""
    torch.set_num_threads(1)
    one = pool_model(name, CLEAN_IMAGES, seed)
    used = time.process_time()
    finding = scan(one.classifier, one.clean, seed=seed)
    row: dict[str, Any] = {
        "model": name,
        "seed": seed,
        **{key: one.facts[key] for key in ("attack", "target")},
        "verdict": finding.verdict.value,
        "trials": [],
    }
    if finding.verdict is Verdict.NOTHING_FOUND:
        return row | {"processor seconds": time.process_time() - used}
    known, held_out = one.clean.split(1 - HELD_OUT, seed=seed)
    survivors = Survivors(
        one.classifier, finding.evidence, finding.suspects, known, held_out, seed=seed
    )
    given = (one.classifier, known, held_out, survivors)
    how: dict[str, Any] = {"max_accuracy_drop": MOST_LOST, "seed": seed, "progress": report}
    plan = plan_for(survivors)
    best, trials = try_repairs(*given, plan, **how)
    assert best.weighed is not None
    row |= {"ended early": best.weighed.sufficient, "kept": trials.index(best)}
    pruned: tuple[Trial, ...] = ()
    if not best.weighed.sufficient:
        (unlearn,) = plan[0]
        steps = [step for one in PRUNINGS for step in ((one,), (one, unlearn))]
        kept, pruned = try_repairs(*given, steps, **how)
        row["kept, pruned"] = len(trials) + pruned.index(kept)
    row["processor seconds"] = time.process_time() - used
    before = evaluate(one.classifier, one.test, one.attack)
    row["trials"] = list(measured([*trials, *pruned], one, before))
    return row


def measured(trials: Iterable[Trial], one: Any, before: Any) -> Iterable[dict[str, Any]]:
    """Each trial with what only the true trigger and the test images tell."""
    for trial in trials:
        if trial.repair is None or trial.weighed is None:
            yield {"name": trial.name, "failure": trial.failure}
            continue
        after = evaluate(trial.repair.classifier, one.test, one.attack)
        compared = compare(one.attack, before, after)
        yield {
            "steps": [step.name for step in trial.steps],
            "share": trial.share,
            "balance": trial.weighed.balance,
            "seconds": trial.seconds,
            "acc drop": before.acc - after.acc,
            "asr after": after.asr,
            "der": compared["der"],
        }
