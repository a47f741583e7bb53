"""What a scan found, as the plain record that the screen, the report and the JSON file show.

Each witness keeps its own statistic, unit and null; ``statistic`` is that of the witness that
decided the most suspicious class. The p-values of the record are corrected for the number of
classes and of witnesses. A witness's own are, too, where the witnesses share the false-alarm rate;
where their combination was measured, a witness's p-values are what it says alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from bezoar.combining import MANY, as_measured, corrected_p_values
from bezoar.methods import RNP, Evidence, methods
from bezoar.methods.generated_trigger import GeneratedTrigger, GeneratedTriggers
from bezoar.methods.neural_cleanse_triggers import Triggers
from bezoar.methods.recovered import Recovered
from bezoar.power import combined_power_sentence, power_sentence
from bezoar.proving import Proof
from bezoar.statistics import FEWEST_CLASSES, critical_value, mad_outliers
from bezoar.verdict import Judgement, Levels, Verdict
from bezoar.wording import NO_PROOF, Words, within_a_sentence

NOT_ALONE = "Networks without a backdoor can show the like, so this alone is not suspicious."
MEASURED = "tac"  # the witness, on its own, that power_sentence speaks of


def scan_record(
    judgement: Judgement,
    evidence: Sequence[Evidence],
    classes: Sequence[str],
    images: int,
    levels: Levels,
) -> dict[str, Any]:
    """Verdict, sentences and figures.

    Args:
        judgement: of the evidence.
        evidence: one for each witness, at least one.
        classes: the class names.
        images: how many clean images there were.
        levels: the limits of the verdicts.
    """
    combined = judgement.combined
    statistics = [
        _statistic_record(e, levels, factor)
        for e, factor in zip(evidence, combined.corrections, strict=True)
    ]
    return {
        "kind": "scan",
        "verdict": judgement.verdict.value,
        "sentence": _sentence(judgement, evidence, classes, images),
        "reasons": [*judgement.reasons, *_readings(evidence, judgement.suspects)],
        "suspects": list(judgement.suspects),
        "ranking": list(judgement.ranking),
        "p_values": list(judgement.p_values),
        "combined": {
            "sentence": combined.in_words(),
            "factor": combined.factor,
            "networks": combined.networks,
        },
        "proofs": [
            {"method": evidence[w].method, "class": k} | proof.as_record()
            for (w, k), proof in judgement.proofs.items()
        ],
        "found_by": [evidence[judgement.deciding[k]].method for k in judgement.suspects],
        "levels": msgspec.structs.asdict(levels),
        "power": " ".join(_limits_of(judgement, evidence, images)),
        "statistic": statistics[judgement.deciding[judgement.ranking[0]]],
        "evidence": [
            _evidence_record(e, statistic, judgement.suspects)
            for e, statistic in zip(evidence, statistics, strict=True)
        ],
        "skipped": _skipped(evidence),
    }


def _limits_of(judgement: Judgement, evidence: Sequence[Evidence], images: int) -> list[str]:
    """What is known of how often such a verdict is wrong."""
    combined = judgement.combined
    told = [combined.in_words()] if combined.witnesses > 1 or combined.contradicted else []
    told.append(_power(evidence, images))
    if judgement.verdict is Verdict.NOTHING_FOUND:
        told.append(_no_proof(evidence))
    return told


def _no_proof(evidence: Sequence[Evidence]) -> str:
    """What a scan that finds nothing leaves open."""
    looked_for = ", or that ".join(dict.fromkeys(e.told.looks_for for e in evidence))
    return (
        f"{NO_PROOF}: the scan looks for one class that {looked_for}, and some attacks do not show "
        "there."
    )


def _sentence(
    judgement: Judgement, evidence: Sequence[Evidence], classes: Sequence[str], images: int
) -> str:
    if judgement.verdict is Verdict.NOTHING_FOUND:
        if len(silent_witnesses(evidence)) == len(evidence):
            return (
                f"Nothing can be told of these {len(classes)} classes {_with(images)}: no method "
                f"that looked could compare them, so nothing is ruled out. {NO_PROOF}."
            )
        phrases = {e.told.unusual for e in evidence}
        unusual = phrases.pop() if len(phrases) == 1 else Words().unusual
        return (
            f"None of the {len(classes)} classes {unusual} {_with(images)}. {NO_PROOF}: some "
            "attacks do not show in what was looked at."
        )
    told = [evidence[w].told for w in judgement.deciding]
    unproven = [k for k in judgement.suspects if k not in judgement.proven]
    # A trigger that works on the images of some classes alone is told class by class.
    partly = {k: proof for k in judgement.proven if (proof := _partial(judgement, k))}
    sentences = [
        f"{_each(chosen, classes)}{words.means} carries most images into "
        f"{_named(chosen, classes) if len(chosen) == 1 else 'it'}, and {words.rarely}."
        for words, chosen in _grouped([k for k in judgement.proven if k not in partly], told)
    ]
    sentences += [
        f"{told[k].means} carries the images of {len(proof.sources)} classes into "
        f"{_named([k], classes)}, and {told[k].rarely}."
        for k, proof in partly.items()
    ]
    sentences += [
        f"{'C' if len(chosen) == 1 else 'Each of the c'}{_named(chosen, classes)[1:]} "
        f"{words.exceeds}, without the proof that would make it a finding."
        for words, chosen in _grouped(unproven, told)
    ]
    return " ".join(sentences)


def silent_witnesses(evidence: Sequence[Evidence]) -> list[str]:
    """Names of those that can single out no class, whatever the network: there are too few."""
    compare = [e.method for e in evidence if all(map(math.isnan, e.scores))]
    # Of two classes one draws all the images that the other loses.
    fallback = [e.method for e in evidence if e.method == RNP.name and len(e.scores) == 2]
    return [*compare, *(name for name in fallback if name not in compare)]


def _partial(judgement: Judgement, k: int) -> Proof | None:
    """The proof of a class whose trigger does not carry enough of all images together."""
    proof = judgement.proofs.get((judgement.deciding[k], k))
    return proof if proof is not None and proof.carried < proof.needed else None


def _with(images: int) -> str:
    return f"with these {images} clean images" if images else "without any clean image"


def _readings(evidence: Sequence[Evidence], suspects: Sequence[int]) -> list[str]:
    """Where the witnesses' triggers lead, so that no mapping is told as if it were one class.

    A trigger that leads anywhere is no sign by itself; that is added where no suspect is among its
    targets.
    """
    told = []
    for e in (e for e in evidence if "reading" in e.record):
        found = e.record["reading"]
        alone = found["targets"] and not set(found["targets"]) & set(suspects)
        sentence = f"{e.method}: {within_a_sentence(found['sentence'])}"
        told.append(sentence + f" {NOT_ALONE}" * bool(alone))
    return told


def _grouped(chosen: Sequence[int], told: Sequence[Words]) -> list[tuple[Words, list[int]]]:
    """Classes of which the same words are said, together and in their order."""
    groups: dict[Words, list[int]] = {}
    for k in chosen:
        groups.setdefault(told[k], []).append(k)
    return list(groups.items())


def _each(chosen: Sequence[int], classes: Sequence[str]) -> str:
    """How a sentence begins that is true of each of several classes by itself."""
    return "" if len(chosen) == 1 else f"For each of the {_named(chosen, classes)}: "


def _named(chosen: Sequence[int], classes: Sequence[str]) -> str:
    return f"class{'es' if len(chosen) > 1 else ''} {', '.join(classes[k] for k in chosen)}"


def _power(evidence: Sequence[Evidence], images: int) -> str:
    """What was measured of this choice of witnesses; nothing is lent from one to another."""
    names = [e.method for e in evidence]
    if len(evidence[0].p_values) < FEWEST_CLASSES:
        return "False alarms and power were not measured of networks with so few classes."
    measured = all(map(as_measured, evidence))
    if measured and names == [MEASURED]:
        return power_sentence()
    many = len(evidence[0].p_values) > MANY
    together = None
    if measured:
        looked = any(methods.get(name).needs != "nothing" for name in names)
        together = combined_power_sentence(names, many=many, images=images if looked else 0)
    if together is not None:
        return together
    if MEASURED not in names or len(names) == 1:
        own = "" if measured else " with these settings"
        return f"False alarms and power of {' and '.join(names)}{own} were not measured."
    return (
        f"False alarms and power were measured of {MEASURED} alone, not of "
        f"{' and '.join(names)} together. {power_sentence()}"
    )


def _skipped(evidence: Sequence[Evidence]) -> list[str]:
    if any(e.recovered is not None for e in evidence):
        return []
    why = ""
    if all(e.perturbations is not None for e in evidence):
        why = ": the scan shifts the last layer's input"
    return [f"No trigger in pixel space was recovered{why}."]


def _statistic_record(evidence: Evidence, levels: Levels, factor: float) -> dict[str, Any]:
    """A witness's statistic in its own unit, with what is known of its null."""
    told = evidence.told
    scored = [v for v, s in zip(evidence.values, evidence.scores, strict=True) if not math.isnan(s)]
    null: dict[str, Any] = {"description": evidence.null}
    if scored:
        null["median"] = float(np.median(scored)) if evidence.limit is None else evidence.limit(0.5)
        null |= _limits(evidence, levels, factor)
    return {
        "name": evidence.statistic,
        "method": evidence.method,
        "value": told.value,
        "unit": told.unit,
        "absent": told.absent,
        "absence": told.absence,
        "carrier": told.carrier,
        "values": list(evidence.values),
        "scores": list(evidence.scores),
        "p_values": corrected_p_values(evidence, factor),
        "null": null,
    }


def _limits(evidence: Evidence, levels: Levels, factor: float) -> dict[str, float]:
    """The values that the smallest class would have to fall below for the two verdicts.

    They follow from the test that made the p-values; a witness with a null of its own names its
    limits, or has none.
    """
    shares = {
        "critical_suspicious": levels.suspicious / factor,
        "critical_found": levels.found / factor,
    }
    if evidence.limit is not None:
        return {key: evidence.limit(p) for key, p in shares.items()}
    logs = [math.log(v) if 0 < v < math.inf else math.inf for v in evidence.values]
    if sum(map(math.isfinite, logs)) < FEWEST_CLASSES:
        return {}
    smallest = min(range(len(logs)), key=lambda k: logs[k])
    if evidence.outliers == "grubbs":
        return {key: math.exp(critical_value(logs, smallest, p)) for key, p in shares.items()}
    if evidence.outliers == "mad":
        return {key: math.exp(_mad_limit(logs, smallest, p)) for key, p in shares.items()}
    return {}


def _mad_limit(values: Sequence[float], which: int, level: float) -> float:
    """The value below which ``values[which]`` has p <= level in ``mad_outliers``, by bisection."""
    others = [v for k, v in enumerate(values) if k != which and math.isfinite(v)]
    high = float(np.median(others))
    width = max(max(others) - min(others), 1e-9)
    low = high - width

    def p_value(value: float) -> float:
        return mad_outliers([value, *others]).p_values[0]

    while p_value(low) > level and width < 1e6:  # a level below the smallest p-value is never met
        width *= 2
        low = high - width
    for _ in range(40):
        middle = (low + high) / 2
        if p_value(middle) > level:
            high = middle
        else:
            low = middle
    return low


def _evidence_record(
    evidence: Evidence, statistic: dict[str, Any], suspects: Sequence[int]
) -> dict[str, Any]:
    """One witness, with its figures for each class as columns."""
    details = dict(evidence.record)
    per_class: dict[str, Any] = {}
    if "norms" in details:
        per_class["norm"] = details.pop("norms")
    if evidence.carried is not None:
        per_class["held_out_flip"] = [evidence.carried_into(k) for k in range(len(evidence.values))]
    for key, column in _COLUMNS.items():
        if key in details:
            per_class[column] = details.pop(key)
    own = {key: details.pop(key) for key in _OWN if key in details}
    record = {
        "method": evidence.method,
        "paper": details.pop("paper", ""),
        "statistic": statistic,
        "per_class": per_class,
        "kkt_residual": details.pop("kkt_residual", None),
        "seconds": sum(details.get("seconds", {}).values()),
        "details": details,
    }
    return record | own | _recovered_record(evidence, suspects)


# What the report shows by itself: where the trigger sends the images of each class.
_OWN = ("votes", "reading")

# Figures of single methods that are shown as columns, and the columns' names.
_COLUMNS = {
    "weight_norms": "weight_norm",
    "predicted_images": "predicted",
    "anomaly_index": "anomaly_index",
}


def _recovered_record(evidence: Evidence, suspects: Sequence[int]) -> dict[str, Any]:
    """The sizes of the suspects' triggers; the pictures themselves are too large for a record."""
    found = evidence.recovered
    if found is None:
        return {}
    rows = [{"class": k} | _size(found, k) for k in suspects if k in found.classes]
    return {"recovered": rows}


def _size(found: Recovered, k: int) -> dict[str, Any]:
    if isinstance(found, Triggers):
        mask = found.masks[found.classes.index(k)]
        return {"mask_l1": float(mask.sum()), "image_pixels": int(mask.numel())}
    if isinstance(found, GeneratedTrigger | GeneratedTriggers):
        return {"rms_bound": found.bound}
    return {}
