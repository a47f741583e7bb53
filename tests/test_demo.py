"""The demo: what a newcomer sees, and that it says the truth."""

import json

import pytest
import torch

from bezoar import cli
from bezoar import demo as demo_module
from bezoar.demo import load_digits
from bezoar.errors import InputError
from bezoar.intake import read_weights

pytestmark = pytest.mark.xdist_group("demo")  # one process makes its fixtures

ORDER = []  # of scans, repairs and evaluations, as the demo calls them


@pytest.fixture(scope="module")
def demo(thorough_judges, tmp_path_factory):
    """The demo as a newcomer runs it: folder, record, exit code."""
    folder = tmp_path_factory.mktemp("demo") / "made by it"
    with pytest.MonkeyPatch.context() as patch:
        for where, name in (
            (demo_module, "evaluate"),
            (demo_module.pipeline, "scan"),
            (demo_module.pipeline, "clean"),
        ):
            patch.setattr(where, name, noted(name, getattr(where, name)))
        code = cli.run(["demo", "--out", str(folder), "--quiet"])
    return folder, json.loads((folder / "record.json").read_text()), code


def noted(name, function):
    """The function, which leaves its name in ``ORDER`` first."""

    def call(*arguments, **options):
        ORDER.append(name)
        return function(*arguments, **options)

    return call


def test_it_finds_and_removes_the_backdoor(demo):
    _, record, code = demo
    assert code == 0
    assert record["backdoored"]["scan"]["ranking"][0] == 0, "the target class of seed 0"
    assert record["backdoored"]["scan"]["verdict"] in ("suspicious", "backdoor found")
    assert record["clean_twin"]["scan"]["verdict"] == "nothing found"
    attack = record["repair"]["attack"]
    assert attack["before"]["asr"]["value"] >= 0.95
    assert attack["after"]["asr"]["value"] <= 0.1
    assert attack["after"]["acc"]["value"] >= attack["before"]["acc"]["value"] - 0.05
    assert record["clean_twin"]["attack"]["before"]["asr"]["value"] <= 0.05
    assert record["repair"]["accepted"]


def test_it_leaves_files_that_the_other_commands_take(demo, capsys):
    folder, record, _ = demo
    assert "<html" in (folder / "report.html").read_text()
    assert not list(folder.glob(".*")), "nothing half-written stays"
    arguments = [str(folder / "backdoored.toml"), "--images", str(folder / "clean.npz")]
    assert cli.run(["scan", *arguments, "--json", "-"]) == 1
    again = json.loads(capsys.readouterr().out)
    assert again["p_values"] == pytest.approx(record["backdoored"]["scan"]["p_values"], rel=1e-6)
    assert again["model"]["sha256"] == read_weights(folder / "backdoored.safetensors").sha256
    cleaned = read_weights(folder / "cleaned.safetensors")
    assert cleaned.sha256 == record["repair"]["output"]["sha256"]


def without_times(record):
    volatile = ("seconds", "created", "command")
    if isinstance(record, dict):
        return {k: without_times(v) for k, v in record.items() if k not in volatile}
    if isinstance(record, list):
        return [without_times(item) for item in record]
    return record


def test_it_repeats_to_the_digit(demo, capsys, tmp_path):
    folder, record, _ = demo
    torch.manual_seed(99)  # the global generator has no say
    assert cli.run(["demo", "--out", str(tmp_path / "again"), "--json", "-"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert without_times(again) == without_times(record)
    for name in ("backdoored.safetensors", "clean-twin.safetensors", "cleaned.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_the_story_holds_the_measured_numbers(demo):
    _, record, _ = demo
    first, second, third, fourth = record["story"]
    assert first.startswith("Backdoored network: ") and "suspected class: 0" in first
    assert second == "Its clean twin: nothing found."
    assert third == record["repair"]["outcome"]
    left = ", signs of a backdoor left" if record["repair"]["aftercare"]["signs"] else ""
    assert third.startswith(f"Repaired{left}: accuracy ")
    after = record["repair"]["attack"]["after"]
    assert f"{100 * after['asr']['value']:.1f} % after the repair" in fourth
    assert f"{100 * after['acc']['value']:.1f} % after." in fourth


def test_the_digits_are_split_without_an_overlap_and_the_seed_draws_the_order():
    parts = load_digits(seed=3)
    assert [len(part) for part in parts] == [1000, 300, 497]
    assert all(part.shape == (1, 8, 8) and part.classes == tuple("0123456789") for part in parts)
    rows = [{image.numpy().tobytes() for image in part.images} for part in parts]
    assert not rows[0] & rows[1] and not rows[0] & rows[2] and not rows[1] & rows[2]
    again, other = load_digits(seed=3), load_digits(seed=4)
    assert [part.sha256() for part in parts] == [part.sha256() for part in again]
    assert parts[0].sha256() != other[0].sha256()
    assert int(parts[0].class_counts(10).min()) > 70


def test_the_attack_is_never_known_to_the_scan_or_the_repair(demo):
    """The true trigger is used only after both are done."""
    assert {"scan", "clean", "evaluate"} == set(ORDER)
    last_decision = max(i for i, name in enumerate(ORDER) if name in ("scan", "clean"))
    assert ORDER.index("evaluate") > last_decision


def test_a_folder_that_cannot_be_made_is_named_before_the_work(tmp_path, monkeypatch):
    def no_work(*_arguments, **_options):
        raise AssertionError("training began")

    monkeypatch.setattr(demo_module, "fit", no_work)
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="cannot be made"):
            demo_module.run(place)
