"""A benchmark on a Ray cluster of two nodes, one of which is killed in the middle."""

import sys

import pytest

from bezoar import bench
from bezoar.bench.results import FOLDER
from bezoar.executors import RayExecutor

HELD = "ft:recipe.epochs=150"  # long enough that the node is killed while it has work


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="nodes are killed as on Linux")
def test_a_grid_survives_the_loss_of_a_node(cluster, write_grid, tmp_path):
    """Every run has one result in the end, and those that were there are not done again."""
    second = cluster.add()
    out = tmp_path / "results"
    grid = bench.read_grid(write_grid(methods=f'["{HELD}", "clp"]', control_epochs="[1]"))
    ready = bench.make_ready(grid, out)
    written, killed = [], []

    def finished(record, done, _total):
        written.append(record["key"])
        if done == len(ready.plan.references) + 1:
            cluster.remove_node(second, allow_graceful=False)
            killed.append(done)

    heard = set()
    summary = bench.run(
        ready,
        out,
        RayExecutor(address=cluster.address),
        finished=finished,
        progress=lambda key, _what, _share: heard.add(key),
    )
    assert killed
    assert summary.done == len(ready.plan.runs) and not summary.failed and not summary.unwritten
    assert sorted(written) == sorted(one.key for one in ready.plan.runs), "each once"
    assert len(list((out / FOLDER).iterdir())) == len(ready.plan.runs)
    assert heard, "progress arrives from the nodes"
    again = bench.run(ready, out, RayExecutor(address=cluster.address))
    assert again.ran == 0
