"""Which loss should TAC's second stage use? The candidates of our reading of the paper, compared.

    python benchmarks/tac_losses.py

The paper's loss could not be reached, so the candidates are compared here, on digit networks from
seeds that no other table uses, with the true trigger as the judge. These networks are for choosing:
nothing here says how well the chosen loss does on others. Writes ``results/tac_losses.json``.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
import tyro
from result_file import result_head

from bezoar import networks
from bezoar.attacks import Attack, BadNets, Blend
from bezoar.classifier import Classifier
from bezoar.demo import DIGITS_RECIPE, MEAN, STD, load_digits
from bezoar.evaluation import evaluate
from bezoar.methods import TAC, FineTuning, Method
from bezoar.records import write_json
from bezoar.training import fit

RESULTS = Path(__file__).parent / "results" / "tac_losses.json"
SEEDS = (300, 301, 302)


@dataclass
class Options:
    """What to run.

    Attributes:
        threads: of torch.
    """

    threads: int = 1


def candidates() -> dict[str, Method]:
    """The losses, all with the same recipe."""
    ours = TAC()
    plain = msgspec.structs.replace(
        ours, pushed="label", distillation=0.0, recompute=False, quantile=None
    )
    change = msgspec.structs.replace
    return {
        "fine-tuning (beta = 0)": FineTuning(recipe=ours.recipe),
        "(3): cross-entropy, fixed shift": plain,
        "(3), averaged by 1 / (1 + beta)": change(plain, weighting="mean"),
        "(3), shift scaled by U(0, 1)": change(plain, shift_scale="uniform"),
        "(3), shift projected out of the head first": change(plain, project_head=True),
        "(3), head only": change(plain, parameters="head"),
        "(3), head frozen": change(plain, parameters="features"),
        "(3), batch norm frozen": change(plain, recipe=change(plain.recipe, batch_norm="eval")),
        "(3), shift from the 0.95 quantile": change(plain, push_quantile=0.95),
        "(3), distilled": change(plain, distillation=1.0),
        "(3), distilled, shift renewed": change(plain, distillation=1.0, recompute=True),
        "ours, beta = 0.3": change(ours, beta=0.3),
        "ours": ours,
        "ours, beta = 3": change(ours, beta=3.0),
    }


def main(options: Options) -> None:
    """Trains the networks, repairs each with every candidate."""
    torch.set_num_threads(options.threads)
    runs: list[dict[str, Any]] = []
    for seed in SEEDS:
        train, clean, test = load_digits(seed=seed)
        attacks: tuple[Attack, ...] = (
            BadNets(target=seed % 10, size=2),
            Blend(target=(seed + 5) % 10, ratio=0.25, pattern_seed=seed),
        )
        for attack in attacks:
            torch.manual_seed(seed)
            classifier = Classifier(networks.build("small-cnn"), mean=MEAN, std=STD)
            poisoned = attack.poison(train, 0.1, seed=seed).images
            fit(classifier, poisoned, DIGITS_RECIPE, seed=seed)
            before = evaluate(classifier, test, attack)
            for name, method in candidates().items():
                if isinstance(method, TAC):
                    method = msgspec.structs.replace(method, target_class=attack.target)
                repaired = method.remove(classifier, clean, seed=seed).classifier
                after = evaluate(repaired, test, attack)
                runs.append(
                    {
                        "candidate": name,
                        "attack": attack.name,
                        "seed": seed,
                        "acc before": before.acc,
                        "asr before": before.asr,
                        "acc": after.acc,
                        "asr": after.asr,
                    }
                )
            print(seed, attack.name, flush=True)
    rows = []
    for name in candidates():
        row: dict[str, Any] = {"candidate": name}
        for attack_name in ("bad-nets", "blend"):
            chosen = [r for r in runs if (r["candidate"], r["attack"]) == (name, attack_name)]
            for key in ("acc", "asr"):
                values = [r[key] for r in chosen]
                row[f"{attack_name} {key}"] = statistics.mean(values)
                row[f"{attack_name} {key} sd"] = statistics.stdev(values)
        rows.append(row)
        print(row)
    record = result_head(
        __file__,
        "Candidates for TAC's loss, on networks that no other table uses",
        f"{options.threads} thread(s)",
    ) | {"summary": rows, "runs": runs}
    write_json(RESULTS, record)


if __name__ == "__main__":
    main(tyro.cli(Options))
