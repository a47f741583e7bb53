"""The TAC programme of all classes: our batched solver beside general QP packages, in one run.

    python benchmarks/tac_solver.py

Synthetic heads as in the study behind the solver: non-negative features around class means, a ridge
regression head, one planted direction. Times are wall seconds of this process on the threads that
it says, the best of the stated repetitions; CPU seconds stand beside them. Where a package is timed
on a few classes only, the time for all of them is extrapolated and marked so. Packages that are not
installed are left out (quadprog, clarabel, proxsuite and osqp are tried).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from result_file import result_head
from scipy.optimize import nnls

from bezoar.methods.tac_solver import right_hand_sides, solve_minimal_shifts
from bezoar.records import write_json

RESULTS = Path(__file__).parent / "results" / "tac_solver.json"
CASES = ((10, 512, 2500), (43, 512, 1960), (200, 2048, 5000), (1000, 2048, 5000))


@dataclass
class Options:
    """What to run.

    Attributes:
        threads: of torch and of the packages that use BLAS.
        repetitions: of our solver; the best one counts.
        sampled: classes that the packages solve where there are more than 50.
        patience: seconds for the first class beyond which a package solves two classes only.
    """

    threads: int = 1
    repetitions: int = 3
    sampled: int = 20
    patience: float = 2.0


def problem(classes: int, features: int, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Head weight (C, d) and logits (n, C), float32."""
    g = torch.Generator().manual_seed(classes + features)
    means = torch.rand(classes, features, generator=g)
    labels = torch.arange(samples) % classes
    x = (means[labels] + 0.5 * torch.randn(samples, features, generator=g)).relu()
    direction = torch.rand(features, generator=g)
    stamped = x[: samples // 10] + 3 * direction / direction.norm()
    everything = torch.cat([x, stamped]).double()
    wanted = torch.cat([labels, torch.zeros(len(stamped), dtype=torch.int64)])
    centre = everything.mean(0)
    targets = torch.nn.functional.one_hot(wanted, classes).double()
    gram = (everything - centre).T @ (everything - centre) / len(everything)
    ridge = gram + 0.1 * gram.diagonal().mean() * torch.eye(features, dtype=torch.double)
    weight = torch.linalg.solve(ridge, (everything - centre).T @ targets / len(everything)).T
    weight = (20 * weight).float()
    return weight, (x - centre.float()) @ weight.T


def reduced(weight: torch.Tensor, rhs: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Constraint rows of class k in the row span of the centred head, and their right-hand sides.

    This is the cheapest honest form for a general package: its cost no longer depends on d.
    """
    centred = (weight - weight.mean(0)).double()
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    kept = values > 1e-12 * values.max()
    coordinates = (vectors[:, kept] * values[kept].sqrt()).numpy()
    others = np.arange(len(weight)) != k
    return coordinates[k] - coordinates[others], rhs[k].numpy()[others]


def peers() -> dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """Package name → solver of min ||s||^2 / 2 with V s >= r."""
    found: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {}

    def by_nnls(v: np.ndarray, r: np.ndarray) -> np.ndarray:
        scale = max(abs(r).max(), 1e-300)
        a = np.vstack([v.T, r / scale])
        b = np.zeros(len(a))
        b[-1] = 1
        residual = a @ nnls(a, b, maxiter=100 * a.shape[1])[0] - b
        return -residual[:-1] / residual[-1] * scale

    found["scipy nnls (least distance)"] = by_nnls
    if importlib.util.find_spec("quadprog"):
        import quadprog

        def by_quadprog(v: np.ndarray, r: np.ndarray) -> np.ndarray:
            n = v.shape[1]
            return quadprog.solve_qp(np.eye(n), np.zeros(n), np.ascontiguousarray(v.T), r)[0]

        found["quadprog"] = by_quadprog
    if importlib.util.find_spec("proxsuite"):
        import proxsuite

        def by_proxqp(v: np.ndarray, r: np.ndarray) -> np.ndarray:
            n = v.shape[1]
            top = np.full(len(r), 1e20)
            return proxsuite.proxqp.dense.solve(
                np.eye(n), np.zeros(n), None, None, v, r, top, eps_abs=1e-9
            ).x

        found["ProxQP"] = by_proxqp
    if importlib.util.find_spec("clarabel"):
        import clarabel
        from scipy import sparse

        def by_clarabel(v: np.ndarray, r: np.ndarray) -> np.ndarray:
            settings = clarabel.DefaultSettings()
            settings.verbose = False
            n = v.shape[1]
            solver = clarabel.DefaultSolver(
                sparse.eye(n, format="csc"),
                np.zeros(n),
                sparse.csc_matrix(-v),
                -r,
                [clarabel.NonnegativeConeT(len(r))],
                settings,
            )
            return np.array(solver.solve().x)

        found["Clarabel"] = by_clarabel
    if importlib.util.find_spec("osqp"):
        import osqp
        from scipy import sparse

        def by_osqp(v: np.ndarray, r: np.ndarray) -> np.ndarray:
            n = v.shape[1]
            solver = osqp.OSQP()
            solver.setup(
                sparse.eye(n, format="csc"),
                np.zeros(n),
                sparse.csc_matrix(v),
                r,
                np.full(len(r), np.inf),
                eps_abs=1e-6,
                eps_rel=1e-6,
                verbose=False,
            )
            return solver.solve().x

        found["OSQP (1e-6)"] = by_osqp
    return found


def versions() -> dict[str, str]:
    """Versions of everything that was measured."""
    found = {}
    for name in ("torch", "numpy", "scipy", "quadprog", "proxsuite", "clarabel", "osqp"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def timed(work: Callable[[], Any], repetitions: int = 1) -> tuple[Any, float, float]:
    """Result, wall and CPU seconds of the fastest repetition."""
    best = (float("inf"), float("inf"))
    result = None
    for _ in range(repetitions):
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        best = min(best, (time.perf_counter() - wall, time.process_time() - cpu))
    return result, *best


def main(options: Options) -> None:
    """Runs all cases and writes the results."""
    torch.set_num_threads(options.threads)
    cases = []
    for classes, features, samples in CASES:
        weight, logits = problem(classes, features, samples)
        rhs, full, full_cpu = timed(
            lambda z=logits: right_hand_sides(z, conditional=False), options.repetitions
        )
        _, conditional, _ = timed(
            lambda z=logits: right_hand_sides(z, conditional=True), options.repetitions
        )
        ours, solve, solve_cpu = timed(
            lambda w=weight, r=rhs: solve_minimal_shifts(w, r), options.repetitions
        )
        row: dict[str, Any] = {
            "classes": classes,
            "features": features,
            "samples": samples,
            "right-hand sides, full maximum (s)": full,
            "right-hand sides, conditional (s)": conditional,
            "solving (s)": solve,
            "end to end (s)": full + solve,
            "end to end, CPU seconds": full_cpu + solve_cpu,
            "passes": ours.passes,
            "largest KKT residual": float(ours.kkt_residual.max()),
        }
        chosen = range(classes)
        if classes > 50:
            step = classes // options.sampled
            chosen = range(0, classes, step)
        prepared = [reduced(weight, rhs, k) for k in chosen]
        wanted = [float(ours.norms[k]) for k in chosen]
        packages = {}
        for name, solver in peers().items():
            _, first, _ = timed(lambda s=solver, p=prepared[0]: s(*p))
            # A package that takes seconds for one class is timed on two of them.
            tried = prepared if first < options.patience else prepared[:2]
            solutions, wall, _ = timed(lambda s=solver, p=tried: [s(v, r) for v, r in p])
            lengths = [float(np.linalg.norm(s)) for s in solutions]
            packages[name] = {
                "seconds for all classes": wall * classes / len(tried),
                "classes solved": len(tried),
                "largest difference in length": max(
                    abs(a - b) / b for a, b in zip(lengths, wanted, strict=False)
                ),
                "times slower than ours": wall * classes / len(tried) / solve,
            }
            print(classes, name, packages[name], flush=True)
        row["packages"] = packages
        general = [p for name, p in packages.items() if not name.startswith("scipy")]
        if general:
            row["best general QP package, times slower"] = min(
                p["times slower than ours"] for p in general
            )
        cases.append(row)
        print({k: v for k, v in row.items() if k != "packages"}, flush=True)
        record = result_head(
            __file__,
            "TAC programme of all classes against general QP packages",
            f"{options.threads} of {os.cpu_count()} cores",
        ) | {"versions": versions(), "seed": "classes + features", "cases": cases}
        write_json(RESULTS, record)


if __name__ == "__main__":
    main(tyro.cli(Options))
