"""``bezoar bench run`` as a user sees it."""

import json
import sys
from pathlib import Path

import pytest

from bezoar import cli, executors
from bezoar.bench import harness
from bezoar.errors import InputError
from bezoar.executors import make_executor

HERE = make_executor("here")
FULL = Path("/dev/full")

pytestmark = pytest.mark.xdist_group("bench")  # they share a pool

ONE_METHOD = {"methods": '["clp"]', "images": "[0]", "control_epochs": "[1]"}


def run(capsys, *arguments):
    capsys.readouterr()
    code = cli.run([str(argument) for argument in arguments])
    return code, capsys.readouterr().out


def test_a_terminal_shows_one_bar_for_all_runs(write_grid, monkeypatch, capsys):
    from rich.progress import Progress

    made, shown = [], set()
    add, update = Progress.add_task, Progress.update

    def adding(self, description, **options):
        made.append(description)
        return add(self, description, **options)

    def updating(self, task, **options):
        shown.add(options["description"])
        update(self, task, **options)

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(Progress, "add_task", adding)
    monkeypatch.setattr(Progress, "update", updating)
    code, _ = run(capsys, "bench", "run", write_grid(**ONE_METHOD), "--executor", "here")
    assert code == 0
    assert sorted(name.partition(" (")[0] for name in made) == ["in work", "runs"]
    assert "runs (7 of 7)" in shown
    assert any(name.startswith("in work (clp ") for name in shown)


def test_a_full_disk_is_not_told_as_done(write_grid, monkeypatch, capsys):
    def full(_out, _record):
        raise InputError("cannot be written: No space left on device")

    monkeypatch.setattr(harness, "write_result", full)
    code, said = run(capsys, "bench", "run", write_grid(**ONE_METHOD), "--executor", "here")
    assert code == 1
    assert said.startswith("0 of 7 runs are done and ")
    assert said.count("not written: ") == 7


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
def test_an_output_that_cannot_be_written_costs_no_other(write_grid, capsys, tmp_path):
    grid = write_grid(**ONE_METHOD)
    code, said = run(capsys, "bench", "run", grid, "--executor", "here", "--json", FULL)
    assert code == 2 and said.startswith("7 of 7 runs are done")
    code, said = run(capsys, "bench", "table", grid, "--to", tmp_path, "--json", FULL)
    assert code == 2 and said.startswith("7 of 7 runs are done") and "Tables: " in said
    assert {"index.html", "table.md", "runs.csv"} <= {path.name for path in tmp_path.iterdir()}
    in_the_way = tmp_path / "index.html"
    record = tmp_path / "table.json"
    code, said = run(capsys, "bench", "table", grid, "--to", in_the_way, "--json", record)
    assert code == 2 and said.startswith("7 of 7 runs are done") and "Tables: " not in said
    assert json.loads(record.read_text())["counts"]["done"] == 7


def test_a_missing_twin_is_noted_by_both_commands(write_grid, pool_without_twin, capsys):
    grid = write_grid(pool=f'"{pool_without_twin}"', **ONE_METHOD)
    for command in (("run", grid, "--executor", "here"), ("table", grid)):
        _, said = run(capsys, "bench", *command)
        assert said.count("Note: the pool lacks the clean twin of 1 of 1") == 1


def test_the_help_says_where_a_run_has_no_timeout(capsys):
    with pytest.raises(SystemExit):
        cli.run(["bench", "run", "--help"])
    said = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    assert "counts as failed; not with here" in said


def test_a_fraction_of_a_core_is_for_ray(write_grid, monkeypatch, capsys):
    """Local processes have whole threads."""
    made = []
    monkeypatch.setattr(executors, "RayExecutor", lambda **given: made.append(given) or HERE)
    grid = str(write_grid())
    assert cli.run(["bench", "run", grid, "--executor", "ray", "--threads", "0.5"]) == 0
    assert made[0]["cpus_per_task"] == 0.5
    assert cli.run(["bench", "run", grid, "--executor", "local", "--threads", "0.5"]) == 2
    assert "0.5 threads are asked for; a local task has whole ones" in capsys.readouterr().err
