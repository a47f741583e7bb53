"""How long an iteration of DHBE's published game takes: the plain loop's and ours, in turns.

    python benchmarks/dhbe_speed.py                  WRN-16-1 and ResNet-8, one thread
    python benchmarks/dhbe_speed.py --device cuda    ResNet-18 and WRN-16-1, together

Both play the same mathematics (batches of 256 at 32x32, generators of width 64); first two
iterations of each in float64 with the same draws must end in the same student, generators and
running statistics. Then single savings are taken away from ours, on a smaller batch; and the whole
of ``DHBE().remove`` is held against 15,000 such iterations, which nobody waits for. On a CPU these
are seconds of the processor, so that what else it does counts little; the first turn warms up.
Writes ``results/dhbe_speed.json`` and keeps what it holds of other devices.
"""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import msgspec
import torch
import tyro
from plain_dhbe import PlainGame, Settings, upsampled_then_convolved
from result_file import result_head
from torch import Tensor, nn

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.datasets import datasets
from bezoar.device import to_fast_layout
from bezoar.methods import DHBE, dhbe_game
from bezoar.methods.dhbe_game import Game, Rules, steps_down
from bezoar.methods.dhbe_patterns import PatternFamily
from bezoar.methods.dhbe_placement import positions
from bezoar.methods.synthesis import SampleSource
from bezoar.networks.pattern_generators import PatternGenerator
from bezoar.networks.upsampled_convolution import UpsampledConvolution
from bezoar.records import write_json

RESULTS = Path(__file__).parent / "results" / "dhbe_speed.json"
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {"wrn-16-1": {}, "resnet-8": {"width": 16}},
    "cuda": {"resnet-18": {}, "wrn-16-1": {}},
}
SIDE = 32
PUBLISHED = DHBE.published()
FACTS = datasets.get("cifar10")


@dataclass
class Options:
    """What to run.

    Attributes:
        device: cpu or cuda.
        threads: of torch, on a CPU.
        batch: images in a batch.
        savings_batch: images in a batch where single savings are taken away; 0 leaves this out.
        turns: of each loop; the first, which warms up, is not counted.
        iterations: in a turn.
        whole: also run ``DHBE().remove``.
    """

    device: str = "cpu"
    threads: int = 1
    batch: int = 256
    savings_batch: int = 64
    turns: int = 3
    iterations: int = 1
    whole: bool = True


def victim(name: str, device: torch.device) -> nn.Module:
    """Random weights, with the running statistics of noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = networks.build(name, **CASES[device.type][name])
        noise = torch.randn(256, 3, SIDE, SIDE)
    network = network.to(torch.get_default_dtype()).train()
    with torch.no_grad():
        for _ in range(20):
            network(noise.to(torch.get_default_dtype()))
    return network.eval().to(device)


def our_game(
    network: nn.Module, batch: int, device: torch.device, *, together: bool, last: bool = True
) -> Game:
    """The game with the published numbers; ``last`` is the layout of the networks."""
    p = PUBLISHED
    teacher, student = (copy.deepcopy(network) for _ in range(2))
    teacher.eval().requires_grad_(False)
    if last:
        to_fast_layout(teacher, device)
        to_fast_layout(student.train(), device)
    settings = msgspec.structs.replace(p.synthesis, batch_size=batch)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        draws = torch.Generator(device).manual_seed(2)
        source = SampleSource(teacher, (3, SIDE, SIDE), settings, draws)
        generator = PatternGenerator(
            3, p.patch_sizes[0], latent=p.pattern_latent, width=p.pattern_width
        )
    family = PatternFamily(
        generator,
        (SIDE, SIDE),
        scale=1 / torch.tensor(FACTS.std).view(-1, 1, 1),
        each=False,
        learning_rate=p.pattern_rate,
        device=device,
        seed=3,
    )
    rules = Rules(
        iterations=p.iterations,
        student_steps=p.student_steps,
        insensitivity=p.insensitivity,
        distance=p.distance,
        adversary=p.adversary,
        statistics=p.statistics,
        schedule=steps_down,
        together=together,
    )
    optimizer = torch.optim.SGD(
        student.train().parameters(),
        p.learning_rate,
        momentum=p.momentum,
        weight_decay=p.weight_decay,
    )
    return Game(teacher, student, optimizer, source, [family], rules)


def plain_game(ours: Game, device: torch.device, iterations: int) -> PlainGame:
    """The plain loop from where ``ours`` begins, with the draws that it will have."""
    players = (ours.teacher, ours.student, ours.source.generator, ours.families[0].generator)
    batch, side = ours.source.settings.batch_size, PUBLISHED.patch_sizes[0]

    def latents(seed: int, length: int) -> Iterator[Tensor]:
        draws = torch.Generator(device).manual_seed(seed)
        while True:
            yield torch.randn((batch, length), generator=draws, device=device)

    draws = torch.Generator(device).manual_seed(4)  # of the family: its seed + 1
    corners = [
        tuple(positions(1, (side, side), (SIDE, SIDE), draws, each=False)[0].tolist())
        for _ in range(iterations * (PUBLISHED.student_steps + 1))
    ]  # beforehand, as the released code draws them on the host
    return PlainGame(
        *(copy.deepcopy(player).to(memory_format=torch.contiguous_format) for player in players),
        mean=torch.tensor(FACTS.mean, device=device).view(-1, 1, 1),
        std=torch.tensor(FACTS.std, device=device).view(-1, 1, 1),
        latents=latents(2, PUBLISHED.synthesis.latent),
        pattern_latents=latents(3, PUBLISHED.pattern_latent),
        corners=iter(corners),
        settings=Settings(iterations=PUBLISHED.iterations),
    )


def largest_difference(name: str, device: torch.device, together: bool) -> float:
    """After two iterations in float64, of any number of the players, relative to its tensor."""
    torch.set_default_dtype(torch.float64)
    try:
        ours = our_game(victim(name, device), 8, device, together=together)
        plain = plain_game(ours, device, 2)
        for iteration in range(2):
            plain.play(iteration)
            ours.play(iteration)
    finally:
        torch.set_default_dtype(torch.float32)
    worst = 0.0
    for theirs, mine in (
        (plain.student, ours.student),
        (plain.sampler, ours.source.generator),
        (plain.patterner, ours.families[0].generator),
    ):
        for key, value in theirs.state_dict().items():
            size = value.double().abs().max().clamp_min(1e-3)
            difference = (value.double() - mine.state_dict()[key].double()).abs().max()
            worst = max(worst, float(difference / size))
    assert worst < 1e-6, f"the two games differ by {worst}"
    return worst


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Of the processor on a CPU, of the clock elsewhere."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    started = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


Player = tuple[Game | PlainGame, Callable[[], AbstractContextManager[Any]]]


def in_turns(
    players: dict[str, Player], device: torch.device, turns: int, iterations: int
) -> dict[str, list[float]]:
    """Seconds of an iteration, for each turn but the first."""
    seconds: dict[str, list[float]] = {name: [] for name in players}
    for turn in range(turns):
        for name, (game, changed) in players.items():

            def play(game: Game | PlainGame = game, turn: int = turn) -> None:
                for iteration in range(iterations):
                    game.play(turn * iterations + iteration)

            with changed():
                taken = seconds_of(play, device) / iterations
            if turn:
                seconds[name].append(taken)
    return seconds


@contextlib.contextmanager
def gradients_everywhere(game: Game) -> Iterator[None]:
    """Networks that do not learn get gradients as well."""
    game.teacher.requires_grad_(True)
    with patch.object(dhbe_game, "gradients_only_for", lambda *_: nullcontext()):
        yield


def without(network: nn.Module, batch: int, device: torch.device) -> dict[str, Player]:
    """Ours, and ours with one saving less (or, on a CPU, with one call for several batches)."""
    together = device.type != "cpu"

    def game(**changes: Any) -> Game:
        return our_game(network, batch, device, **({"together": together} | changes))

    learning = game()
    apart = patch.object(UpsampledConvolution, "forward", upsampled_then_convolved)
    calls = "one call for each batch" if together else "one call for several batches"
    return {
        "ours": (game(), nullcontext),
        "contiguous layout": (game(last=False), nullcontext),
        "gradients everywhere": (learning, lambda: gradients_everywhere(learning)),
        "upsampling apart": (game(), lambda: apart),
        calls: (game(together=not together), nullcontext),
    }


def rows_of(name: str, options: Options, device: torch.device) -> dict[str, list[dict[str, Any]]]:
    """What was measured of one network."""
    together = device.type != "cpu"
    facts = {"case": name, "device": options.device}
    difference = largest_difference(name, device, together)
    network = victim(name, device)
    ours = our_game(network, options.batch, device, together=together)
    plain = plain_game(ours, device, options.turns * options.iterations)
    players: dict[str, Player] = {"plain": (plain, nullcontext), "ours": (ours, nullcontext)}
    seconds = in_turns(players, device, options.turns, options.iterations)
    ratios = [p / o for p, o in zip(seconds["plain"], seconds["ours"], strict=True)]
    iteration: dict[str, Any] = facts | {
        "batch": options.batch,
        "plain seconds": median(seconds["plain"]),
        "our seconds": median(seconds["ours"]),
        "ratio": median(ratios),
        "ratio of the fastest": min(seconds["plain"]) / min(seconds["ours"]),
        "turns": len(ratios),
        "largest difference in float64": difference,
    }
    print(iteration, flush=True)
    rows: dict[str, list[dict[str, Any]]] = {"an iteration": [iteration], "savings": []}
    if options.savings_batch:
        changed = without(network, options.savings_batch, device)
        seconds = in_turns(changed, device, options.turns, options.iterations)
        for change in seconds:
            ratios = [c / o for c, o in zip(seconds[change], seconds["ours"], strict=True)]
            row = {"batch": options.savings_batch, "with": change}
            row |= {"seconds": median(seconds[change]), "ratio": median(ratios)}
            rows["savings"].append(facts | row)
            print(rows["savings"][-1], flush=True)
    if options.whole:
        classifier = Classifier(network, mean=FACTS.mean, std=FACTS.std, input_size=(SIDE, SIDE))
        taken = seconds_of(lambda: DHBE().remove(classifier, seed=0), device)
        whole = facts | {"default seconds": taken}
        for loop in ("our", "plain"):
            published = PUBLISHED.iterations * iteration[f"{loop} seconds"]
            whole |= {
                f"{loop} published seconds, from one iteration": published,
                f"ratio to {loop} published": published / taken,
            }
        rows["from beginning to end"] = [whole]
        print(whole, flush=True)
    return rows


def main(options: Options) -> None:
    """Measures every network and writes the result."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    result = result_head(__file__, "Seconds of DHBE's game", f"{options.threads} thread(s)")
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    tables = ("an iteration", "savings", "from beginning to end")
    for table in tables:
        result[table] = [row for row in before.get(table, []) if row["device"] != options.device]
    for name in CASES[device.type]:
        for table, rows in rows_of(name, options, device).items():
            result[table] += rows
    write_json(RESULTS, {key: value for key, value in result.items() if value})


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
