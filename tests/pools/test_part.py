"""The hidden folder of one process, and what a killed one left."""

import subprocess
import sys

import pytest

from bezoar.pools.part import part_of

HOLDS = """
import sys
from pathlib import Path
from bezoar.pools.part import part_of
with part_of(Path(sys.argv[1])) as part:
    print(part, flush=True)
    sys.stdin.read()
"""


def test_it_is_renamed_or_gone(tmp_path):
    out = tmp_path / "m"
    with part_of(out) as part:
        (part / "file").touch()
        part.replace(out)
    assert [path.name for path in tmp_path.rglob("*")] == ["m", "file"]


def test_a_stop_in_the_middle_leaves_none(tmp_path):
    def stopped():
        with part_of(tmp_path / "m") as part:
            (part / "file").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []


def test_that_of_a_living_process_stays_and_that_of_a_killed_one_goes(tmp_path):
    out = tmp_path / "m[1]"  # no pattern
    with subprocess.Popen(  # noqa: S603 (our own script)
        [sys.executable, "-c", HOLDS, str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        theirs = other.stdout.readline().strip()
        with part_of(out) as ours:
            assert {str(path) for path in tmp_path.iterdir()} == {str(ours), theirs}
        other.kill()
    assert [str(path) for path in tmp_path.iterdir()] == [theirs], "as killing leaves it"
    with part_of(out) as ours:
        assert list(tmp_path.iterdir()) == [ours]
    assert list(tmp_path.iterdir()) == []


def test_those_of_other_models_are_left_alone(tmp_path):
    (tmp_path / ".m-2.0123.part").mkdir()
    with part_of(tmp_path / "m"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".m-2.0123.part"]
