"""The head that the benchmark scripts put above their figures."""

import platform
import sys
from pathlib import Path

import torch

import bezoar

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from make_measured import page
from result_file import result_head


def test_the_head_tells_title_command_versions_and_machine_in_this_order():
    head = result_head("/elsewhere/benchmarks/scan_speed.py", "A scan", "2 thread(s)")
    vectors = torch.backends.cpu.get_cpu_capability()
    assert list(head.items()) == [
        ("title", "A scan"),
        ("command", "python benchmarks/scan_speed.py"),
        ("versions", {"bezoar": bezoar.__version__, "torch": torch.__version__}),
        ("machine", f"{platform.machine()} with {vectors}, 2 thread(s)"),
    ]


def test_a_command_with_options_is_told_as_it_is():
    head = result_head("x.py", "X", "one thread", command="python benchmarks/x.py --device cuda")
    assert head["command"] == "python benchmarks/x.py --device cuda"
    assert list(head) == ["title", "command", "versions", "machine"]


def test_no_machine_is_told_where_no_figure_depends_on_it():
    assert list(result_head("x.py", "X")) == ["title", "command", "versions"]


def test_the_page_of_measured_numbers_reads_the_head():
    text = page({"x.json": result_head("x.py", "X", "one thread") | {"runs": [{"asr": 0.1}]}})
    for told in ("## X", "python benchmarks/x.py", bezoar.__version__, "one thread"):
        assert told in text
