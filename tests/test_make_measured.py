"""The page of measured numbers is what the result files say."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "make_measured.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_measured", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def share(value, low=0.1, high=0.9):
    return {"value": value, "low": low, "high": high, "count": 100}


RUNS = {
    "title": "Checkpoints",
    "command": "python benchmarks/x.py",
    "versions": {"torch": "2.13.0"},
    "machine": "x86_64",
    "runs": [
        {"model": "a|b", "method": "tac", "seed": 0, "accepted": True, "after": {"asr": share(0)}},
        {"model": "a|b", "method": "tac", "seed": 1, "accepted": False, "after": {"asr": share(1)}},
        {"model": "a|b", "method": "scan", "seed": 0, "verdict": "suspicious", "p": 1e-9},
        {"model": "c", "method": "scan", "seed": 0, "verdict": None, "p": 0.0312},
    ],
}


def test_runs_of_one_kind_become_one_row_with_mean_and_range(script):
    tac, scan = script.tables(RUNS)
    assert tac == [
        {
            "model": "a|b",
            "method": "tac",
            "accepted": "yes in 1 of 2",
            "after asr": "50.0 % (0.0 to 100.0)",
            "seeds": "2",
        }
    ]
    assert [row["p"] for row in scan] == ["< 0.0001", "0.031"]
    assert [row["verdict"] for row in scan] == ["suspicious", "–"]


def test_a_share_from_one_seed_shows_its_interval(script):
    assert script.cell([share(0.5, 0.402, 0.598)]) == "50.0 % (40.2 to 59.8)"


def test_what_a_column_measures_is_written_as_a_percentage(script):
    assert script.cell([0.0183], "acc drop") == "1.8 %"
    assert script.cell([0.34, 0.36], "acc less ra, twin") == "35.0 % (34.0 to 36.0)"
    assert script.cell([-0.0001], "der") == "0.0 %"
    assert script.cell([12], "asr <= 0.10 and drop <= 0.05") == "12"  # a count
    assert script.cell([0.5], "seconds") == "0.5"


def test_class_indices_are_counted_and_not_averaged(script):
    assert script.cell([3, 8, 3], "first") == "3 (2 of 3), 8 (1 of 3)"
    assert script.cell([3, 8, 4], "rank of target") == "5 (3 to 8)"


def test_summary_replaces_the_single_runs(script):
    page = script.page({"x.json": RUNS | {"summary": [{"kind": "clean", "counted": 7}]}})
    assert "| clean | 7 |" in page
    assert "4 single runs" in page
    assert "suspicious" not in page


def test_what_is_told_by_attack_stands_after_the_summary_and_not_in_the_readme(script):
    told = [{"attack": "sig", "backdoored models": 1, "looks": 3, "flagged at 0.05": 0}]
    summary = [{"kind": "clean", "counted": 7, "auroc": 0.5}]
    results = {"x.json": RUNS | {"summary": summary, "by attack": told}}
    page = script.page(results)
    assert page.index("| clean | 7 | 0.5 |") < page.index("| sig | 1 | 3 | 0 |")
    assert "suspicious" not in page
    digest = script.digest(results)
    assert "| clean | 7 | 0.5 |" in digest and "sig" not in digest


def test_text_cannot_break_out_of_a_table(script):
    table = script.markdown([{"name": "a|b\nc <script>"}])
    assert table.splitlines()[2] == "| a\\|b c &lt;script> |"


def test_nested_facts_and_rows_of_any_benchmark_are_shown(script):
    result = {
        "cases": [{"classes": 10, "ours": {"seconds": 0.0021}, "peers": {"quadprog": 1.5}}],
        "ratio": 12.345,
    }
    page = script.page({"solver.json": result})
    assert "| 10 | 0.0021 | 1.5 |" in page
    assert "| ratio | 12.3 |" in page


def test_check_fails_until_both_files_show_the_results(script, tmp_path):
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{script.BEGIN}\n{script.END}\nafter\n")
    with pytest.raises(SystemExit, match="make measured"):
        script.main(tmp_path, check=True)
    script.main(tmp_path, check=False)
    script.main(tmp_path, check=True)
    assert "Nothing has been measured yet" in readme.read_text()
    (tmp_path / "benchmarks" / "results" / "x.json").write_text(json.dumps(RUNS))
    with pytest.raises(SystemExit, match="make measured"):
        script.main(tmp_path, check=True)
    script.main(tmp_path, check=False)
    script.main(tmp_path, check=True)
    assert readme.read_text().startswith("before\n")
    assert readme.read_text().endswith("after\n")
    assert "50.0 % (0.0 to 100.0)" in (tmp_path / "docs" / "measured.md").read_text()


def test_check_says_so_where_the_readme_has_no_place_for_the_numbers(script, tmp_path):
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(SystemExit, match="measured: begin"):
        script.main(tmp_path, check=False)


def test_a_picture_stands_on_the_page_and_its_facts_in_no_table(script):
    drawn = {"file": "images/x.svg", "shows": "ACC for each setting"}
    rows = [
        {"factor": "rate", "setting": setting, "seed": seed, "acc": acc, "case": 1, "ratio": 2.5}
        for setting, accs in {"0.1": (0.25, 0.75), "0.3": (0.5, 1.0)}.items()
        for seed, acc in enumerate(accs)
    ]
    results = {"x.json": {"picture": drawn, "tolerance": rows}}
    page = script.page(results)
    assert "![ACC for each setting](images/x.svg)" in page
    assert page.count("x.svg") == 1
    assert "| rate | 0.1 | 50.0 % (25.0 to 75.0) | 1 | 2.5 | 2 |" in page
    assert "| rate | 0.3 | 75.0 % (50.0 to 100.0) | 1 | 2.5 | 2 |" in page
    assert "x.svg" not in script.digest(results)
    assert "2.5" not in script.digest(results)


def test_single_runs_in_groups_are_counted_and_not_printed(script):
    groups = {"null": [{"acc": 0.5}], "judged": [{"acc": 0.25}, {"acc": 0.75}]}
    page = script.page({"grouped.json": RUNS | {"runs": groups, "summary": [{"flagged": 1}]}})
    assert "3 single runs" in page
    assert "{'acc'" not in page and "runs null" not in page
