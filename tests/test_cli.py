"""The commands as users run them, in this process unless the process itself is the point."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

import bezoar
from bezoar import cli
from bezoar.intake import read_weights
from bezoar.methods import FineTuning, methods

FACTS = ("--architecture", "bezoar:small-cnn", "--mean", "0.3", "--std", "0.35")
QUICK = ("--set", "recipe.epochs=1")
RUINOUS = ("--set", "recipe.epochs=1", "recipe.learning_rate=5", "recipe.clip_norm=0")


@pytest.fixture
def record_of(run):
    """(arguments…) → exit code, the record on standard output."""

    def call(*arguments):
        code, out, _ = run(*arguments, "--json", "-")
        return code, json.loads(out)

    return call


def images(model_files, name="clean"):
    return ("--images", model_files / f"{name}.npz")


def same_tensors(first, second):
    ours, theirs = read_weights(first).tensors, read_weights(second).tensors
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


# -- the whole -------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version(run, option):
    assert run(option) == (0, f"bezoar {bezoar.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Expected one of"),
        (["scna", "model.toml"], "scna"),
        (["evaluate", "model.toml", "--trigger", "bad-nets"], "--images"),
        (["scan", "model.toml", "--images", "x", "--sede", "1"], "--seed"),
        (["scan", "model.toml", "--images", "x", "--seed", "one"], "--seed"),
        (["scan", "model.toml", "--images", "x", "--fail-on", "always"], "--fail-on"),
    ],
)
def test_a_wrong_command_line_names_the_option_and_exits_with_2(arguments, said, capsys):
    with pytest.raises(SystemExit) as left:
        cli.run(arguments)
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert said in err and out == "" and "Traceback" not in err


@pytest.mark.parametrize(
    ("command", "option", "says"),
    [
        ("demo", "--no-open", "do not show the report"),
        ("generator train", "--no-flip", "do not mirror images"),
    ],
)
def test_the_help_of_a_switch_says_what_giving_it_does(command, option, says, capsys):
    with pytest.raises(SystemExit):
        cli.run([*command.split(), "--help"])
    _, _, told = capsys.readouterr().out.partition(option)
    assert told.lstrip().startswith(says) and "True" not in told.partition("--")[0]


def test_the_help_of_evaluate_names_the_file_that_attack_writes(capsys):
    with pytest.raises(SystemExit):
        cli.run(["evaluate", "--help"])
    assert "trigger.safetensors" in capsys.readouterr().out


@pytest.mark.parametrize("size", [["8"], ["8", "8"]])
def test_an_input_size_is_one_number_or_two(size, record_of, model_files):
    given = (model_files / "planted.pt", *FACTS, "--input-size", *size, *images(model_files))
    code, record = record_of("evaluate", *given, "--trigger", "bad-nets:target=4,size=2")
    assert code == 0 and record["scores"]["asr"]["value"] > 0.9


@pytest.mark.skipif(sys.platform == "win32", reason="there is no pseudo-terminal")
@pytest.mark.parametrize("wish", ["", "1"])
def test_the_help_on_a_terminal_has_colours_unless_nobody_wants_them(wish):
    import pty  # for this test alone, and not everywhere

    ours, theirs = pty.openpty()
    environment = os.environ | {"NO_COLOR": wish, "TERM": "xterm", "COLUMNS": "80"}
    command = [sys.executable, "-m", "bezoar", "inspect", "--help"]
    text = b""
    with subprocess.Popen(command, env=environment, stdout=theirs) as process:  # noqa: S603 (ours)
        os.close(theirs)
        with contextlib.suppress(OSError):  # how a pseudo-terminal ends
            while part := os.read(ours, 1 << 16):
                text += part
    os.close(ours)
    assert process.returncode == 0
    assert b"--json" in text
    assert (b"\x1b[" in text) == (wish == "")


def test_the_process_ends_with_the_exit_code(model_files):
    def started(*arguments):
        done = subprocess.run(  # noqa: S603 (our own interpreter, arguments from this file)
            [sys.executable, "-m", "bezoar", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done

    asked = ("--methods", "tac", "--json", "-")
    found = started("scan", model_files / "planted.toml", *images(model_files), *asked)
    assert found.returncode == 1
    record = json.loads(found.stdout)  # progress goes elsewhere, or this would be no JSON
    assert record["command"].startswith("bezoar scan ")
    assert record["command"].endswith("--json -")
    missing = started("scan", "nowhere.toml", *images(model_files))
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr.startswith("bezoar: ") and missing.stderr.count("\n") == 1


# -- inspect ---------------------------------------------------------------------------------------


def test_inspect_tells_what_is_in_a_safetensors_file(run, model_files):
    code, out, err = run("inspect", model_files / "planted.safetensors")
    assert (code, err) == (0, "")
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert lines["container"] == "safetensors"
    assert lines["num classes"] == "10" and lines["input channels"] == "1"
    assert lines["head"] == "fc.weight"
    assert "float32: 17" in lines["dtypes"]
    assert "nesting" not in lines, "what is empty is not shown"


def test_inspect_tells_what_is_in_a_torch_file(record_of, model_files):
    code, record = record_of("inspect", model_files / "planted.pt")
    assert code == 0 and record["kind"] == "inspect"
    assert record["container"] == "torch zip"
    assert record["nesting"] == ["state_dict"] and record["prefix"] == "module."
    assert record["extras"]["epoch"] == "15"
    assert record["num_classes"] == 10 and record["dtypes"]["float16"] == 17
    assert record["nonfinite"] == []


def test_inspect_of_a_description_says_whether_it_fits(record_of, run, model_files, tmp_path):
    code, record = record_of("inspect", model_files / "twin.toml")
    assert code == 0 and record["architecture"] == "bezoar:small-cnn"
    wrong = tmp_path / "wrong.toml"
    text = (model_files / "twin.toml").read_text().replace("small-cnn", "resnet-8")
    wrong.write_text(text.replace("twin.safe", f"{model_files}/twin.safe"))
    code, out, err = run("inspect", wrong)
    assert (code, out) == (2, "") and "conv1.weight" in err


def test_inspect_runs_no_file_that_only_the_description_names(record_of, model_files, tmp_path):
    build = "from bezoar.networks.small_cnn import small_cnn\n"
    (tmp_path / "net.py").write_text(f"{build}open({str(tmp_path / 'ran')!r}, 'w')\n")
    text = (model_files / "twin.toml").read_text().replace("bezoar:small-cnn", "net.py:small_cnn")
    path = tmp_path / "model.toml"
    path.write_text(text.replace("twin.safe", f"{model_files}/twin.safe"))
    code, record = record_of("inspect", path)
    assert code == 0 and not (tmp_path / "ran").exists() and record["num_classes"] == 10
    (notice,) = record["notices"]
    assert "was not looked at" in notice and "net.py:small_cnn" in notice
    code, record = record_of("inspect", path, "--architecture", f"{tmp_path}/net.py:small_cnn")
    assert code == 0 and (tmp_path / "ran").exists() and record["notices"] == []


def test_inspect_with_an_architecture_asks_for_no_mean_and_no_std(run, record_of, model_files):
    weights = model_files / "planted.pt"
    code, record = record_of("inspect", weights, "--architecture", "bezoar:small-cnn")
    assert code == 0 and record["architecture"] == "bezoar:small-cnn"
    code, out, err = run("inspect", weights, "--architecture", "bezoar:resnet-8")
    assert (code, out) == (2, "") and "conv1.weight" in err
    code, out, err = run("inspect", weights, *FACTS[:2], "--std", "0")
    assert (code, out) == (2, "") and "std above 0" in err, "what is given has to be right"


@pytest.mark.parametrize("architecture", [(), FACTS[:2]])
def test_inspect_lists_values_that_are_no_numbers(
    architecture, run, record_of, model_files, tmp_path
):
    path = tmp_path / "broken.safetensors"
    state = dict(read_weights(model_files / "planted.safetensors").tensors)
    state["fc.bias"] = torch.full_like(state["fc.bias"], float("nan"))
    safetensors.torch.save_file(state, path)
    code, out, err = run("inspect", path, *architecture)
    assert (code, err) == (0, "")
    assert "\nnonfinite: fc.bias\n" in out
    assert f"\nwarning: NaN or infinite values in 1 of {len(state)} tensors; " in out
    code, record = record_of("inspect", path, *architecture)
    assert code == 0 and record["nonfinite"] == ["fc.bias"]
    assert record.get("architecture") == (architecture[1] if architecture else None)
    code, record = record_of("inspect", model_files / "planted.safetensors", *architecture)
    assert "warning" not in record


# -- scan ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["planted.toml", "planted.safetensors", "planted.pt"])
def test_scan_finds_the_backdoor_in_every_container(model, record_of, model_files):
    facts = () if model.endswith(".toml") else FACTS
    code, record = record_of("scan", model_files / model, *facts, *images(model_files))
    assert code == 1
    assert record["verdict"] == "backdoor found" and record["suspects"] == [4]
    assert record["model"]["architecture"] == "bezoar:small-cnn"
    assert len(record["model"]["sha256"]) == 64
    assert record["images"]["source"].endswith("clean.npz")


def test_scan_finds_nothing_in_the_twin(run, model_files):
    code, out, err = run("scan", model_files / "twin.toml", *images(model_files))
    assert code == 0
    assert out.startswith("NOTHING FOUND\n") and "no proof" in out.replace("\n", " ")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("verdict", "fail_on", "code"),
    [
        ("nothing found", "suspicious", 0),
        ("suspicious", "suspicious", 1),
        ("backdoor found", "suspicious", 1),
        ("nothing found", "found", 0),
        ("suspicious", "found", 0),
        ("backdoor found", "found", 1),
        ("backdoor found", "never", 0),
    ],
)
def test_the_user_chooses_which_verdict_fails(
    verdict, fail_on, code, run, model_files, monkeypatch
):
    from bezoar import pipeline

    real = pipeline.scan

    def scan(*arguments, **options):
        finding = real(*arguments, **options)
        finding.record["verdict"] = verdict
        return finding

    monkeypatch.setattr(pipeline, "scan", scan)
    arguments = ("scan", model_files / "twin.toml", *images(model_files), "--quiet")
    assert run(*arguments, "--fail-on", fail_on) == (code, "", "")
    if fail_on == "suspicious":
        assert run(*arguments)[0] == code, "this is the default"


def test_scan_writes_record_and_report(run, model_files, tmp_path):
    where, page = tmp_path / "scan.json", tmp_path / "scan.html"
    code, out, _ = run(
        *("scan", model_files / "planted.toml", *images(model_files)),
        *("--json", where, "--report", page, "--seed", "7"),
    )
    assert code == 1 and f"Report: {page}" in out.replace("\n", "")
    record = json.loads(where.read_text())
    assert record["seed"] == 7 and record["kind"] == "scan"
    html = page.read_text()
    assert html.lstrip().lower().startswith("<!doctype html>") and "backdoor found" in html.lower()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.html", "scan.json"]


def test_scan_with_several_methods_shows_what_each_saw(run, model_files, tmp_path):
    where, page = tmp_path / "scan.json", tmp_path / "scan.html"
    code, out, _ = run(
        *("scan", model_files / "planted.toml", *images(model_files)),
        *("--methods", "tac", "neural-cleanse", "--json", where, "--report", page),
    )
    assert code == 1 and out.startswith("BACKDOOR FOUND\n")
    (heading,) = (line for line in out.splitlines() if line.startswith("class"))
    assert heading.split("  ")[1:3] == ["tac: shift", "neural-cleanse: patch (pixels)"]
    record = json.loads(where.read_text())
    assert [item["method"] for item in record["evidence"]] == ["tac", "neural-cleanse"]
    html = page.read_text()
    assert "Trigger recovered for class 4 by neural-cleanse" in html
    assert "mask × pattern" in html and "→ 4</bdi>" in html


def test_one_method_shows_its_statistic_and_score(run, model_files):
    _, out, _ = run("scan", model_files / "twin.toml", *images(model_files))
    (heading,) = (line for line in out.splitlines() if line.startswith("class"))
    assert heading.split() == ["class", "shift", "score", "p"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["tca"], "there is no method 'tca'; perhaps you meant 'tac'"),
        (["ft"], "'ft' removes backdoors and does not look for the target class"),
        (["tac", "tac"], "'tac' is given twice"),
    ],
)
@pytest.mark.parametrize("command", ["scan", "clean"])
def test_a_method_that_cannot_look_is_named_before_anything_is_read(command, names, said, run):
    option = ("--methods",) if command == "scan" else ("--out", "out.pt", "--scan-methods")
    code, out, err = run(command, "nowhere.toml", "--images", "nowhere", *option, *names)
    assert (code, out) == (2, "") and said in err


def test_quiet_says_nothing_and_json_to_the_screen_nothing_else(run, model_files):
    arguments = ("scan", model_files / "twin.toml", *images(model_files))
    assert run(*arguments, "--quiet") == (0, "", "")
    code, out, err = run(*arguments, "--json", "-")
    assert (code, err) == (0, "")
    assert json.loads(out)["verdict"] == "nothing found"


def test_a_limit_draws_equal_shares_of_each_class(record_of, model_files):
    arguments = ("scan", model_files / "twin.toml", *images(model_files))
    _, record = record_of(*arguments, "--limit", "100")
    assert record["images"]["count"] == 100
    whole = record_of(*arguments, "--limit", "1000")[1]["images"]
    assert whole["count"] == 300
    for drawn, there in zip(record["images"]["per_class"], whole["per_class"], strict=True):
        assert abs(drawn - there / 3) <= 1


def test_class_names_are_used_everywhere(run, record_of, model_files):
    names = ["nil", "one", "two", "three", "FOUR", "five", "six", "seven", "eight", "nine"]
    arguments = ("scan", model_files / "planted.toml", *images(model_files), "--classes", *names)
    assert record_of(*arguments)[1]["model"]["classes"] == names
    _, out, _ = run(*arguments)
    assert "class FOUR" in out.replace("\n", " ")


def test_images_can_come_from_a_folder_per_class(record_of, model_files, digits, tmp_path):
    from PIL import Image

    for index, (image, label) in enumerate(
        zip(digits.clean.images, digits.clean.labels, strict=True)
    ):
        place = tmp_path / "images" / str(int(label)) / f"{index:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(place)
    (tmp_path / "images" / "0" / "note.txt").write_text("no image")
    arguments = ("scan", model_files / "planted.toml")
    _, folder = record_of(*arguments, "--images", tmp_path / "images")
    _, packed = record_of(*arguments, *images(model_files))
    assert folder["p_values"] == pytest.approx(packed["p_values"], rel=1e-3)
    assert any("note.txt" in notice for notice in folder["notices"])


# -- clean -----------------------------------------------------------------------------------------


def test_clean_without_a_method_repairs_what_the_scan_suspects(
    run, record_of, model_files, tmp_path
):
    out, where = tmp_path / "cleaned.safetensors", tmp_path / "clean.json"
    code, text, _ = run(
        *("clean", model_files / "planted.toml", *images(model_files)),
        *("--out", out, "--json", where),
    )
    assert code == 0
    record = json.loads(where.read_text())
    assert record["written"] and not record["forced"]
    kept = record["trials"][record["kept"]]
    assert record["method"]["name"] == kept["steps"][-1]
    assert record["output"] == {"file": str(out), "sha256": read_weights(out).sha256}
    assert f"Weights: {out}" in text.replace("\n", "")
    report = tmp_path / "cleaned.report.html"
    assert "Repaired" in report.read_text()

    facts = (out, *FACTS, *images(model_files, "test"))
    _, after = record_of("evaluate", *facts, "--trigger", "bad-nets:target=4,size=2")
    assert after["scores"]["asr"]["value"] <= 0.2
    assert after["scores"]["acc"]["value"] >= 0.93


def test_clean_without_a_method_leaves_a_model_with_nothing_found_as_it_is(
    record_of, model_files, tmp_path
):
    out = tmp_path / "same.safetensors"
    code, record = record_of("clean", model_files / "twin.toml", *images(model_files), "--out", out)
    assert code == 0 and record["untouched"] and record["written"]
    assert same_tensors(out, model_files / "twin.safetensors")
    page = (tmp_path / "same.report.html").read_text()
    assert "<bdi>Left untouched</bdi></h1>" in page and "no proof" in page
    assert "epaired" not in page and "The repair" not in page, "nothing was"


def test_clean_scans_with_the_methods_that_are_named(record_of, model_files, tmp_path):
    _, record = record_of(
        *("clean", model_files / "planted.toml", *images(model_files)),
        *("--out", tmp_path / "out.safetensors", "--method", "ft", *QUICK),
        *("--scan-methods", "neural-cleanse"),
    )
    for scan in (record["scan"], record["rescan"]):
        assert [item["method"] for item in scan["evidence"]] == ["neural-cleanse"]
    report = (tmp_path / "out.report.html").read_text()
    assert "Trigger recovered for class 4 by neural-cleanse" in report


@pytest.mark.parametrize("method", ["ft", "tac"])
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_the_output_has_the_form_of_the_input(method, kind, run, model_files, tmp_path):
    source, out = model_files / f"twin.{kind}", tmp_path / f"cleaned.{kind}"
    code, _, _ = run(
        *("clean", source, *FACTS, *images(model_files), "--out", out),
        *("--method", method, *QUICK, "--quiet"),
    )
    assert code == 0
    ours, theirs = read_weights(source), read_weights(out)
    assert theirs.container == ours.container and theirs.metadata == ours.metadata
    assert theirs.nesting == ours.nesting and dict(theirs.keys) == dict(ours.keys)
    for name, tensor in ours.tensors.items():
        assert theirs.tensors[name].dtype == tensor.dtype
        assert theirs.tensors[name].shape == tensor.shape
    assert not torch.equal(theirs.tensors["fc.weight"], ours.tensors["fc.weight"])
    if kind == "pt":
        document = torch.load(out, weights_only=True)
        assert document["epoch"] == 15 and document["loss"] == [1.5]
        assert list(document["state_dict"]) == list(torch.load(source)["state_dict"])
    else:
        with safetensors.safe_open(out, framework="pt") as file:
            assert file.metadata() == {"by": "us"}


def test_a_seed_repeats_the_file_to_the_bit(run, model_files, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(
            *("clean", model_files / "twin.toml", *images(model_files), "--quiet"),
            *("--out", tmp_path / f"{name}.safetensors", "--seed", seed, "--method", "ft", *QUICK),
        )
    files = [(tmp_path / f"{name}.safetensors").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]


def test_a_repair_that_costs_too_much_is_not_written_unless_forced(
    run, record_of, model_files, tmp_path
):
    out = tmp_path / "ruined.safetensors"
    arguments = (
        *("clean", model_files / "twin.toml", *images(model_files), "--out", out),
        *("--method", "ft", *RUINOUS, "--max-accuracy-drop", "0"),
    )
    code, text, _ = run(*arguments)
    assert code == 1
    assert "Not accepted" in text and "No weights were written." in text
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["ruined.report.html"]

    code, record = record_of(*arguments, "--force")
    assert code == 0 and record["forced"] and not record["accepted"]
    assert not same_tensors(out, model_files / "twin.safetensors")


def test_settings_reach_the_method(record_of, model_files, tmp_path):
    _, record = record_of(
        *("clean", model_files / "twin.toml", *images(model_files)),
        *("--out", tmp_path / "out.safetensors", "--method", "tac", "--preset", "published"),
        *("--set", "beta=2.5", "target_class=4", "quantile=none", "recipe.epochs=1"),
    )
    settings = record["method"]["configuration"]
    assert settings["beta"] == 2.5 and settings["target_class"] == 4
    assert settings["quantile"] is None and settings["recipe"]["epochs"] == 1
    assert settings["distillation"] == 0.0, "from the preset"


class Several(FineTuning, frozen=True, kw_only=True):
    """Fine-tuning with settings of several values."""

    name: ClassVar[str] = "several"

    sizes: tuple[int, ...] = ()
    shares: tuple[float, float] = (0.5, 0.9)
    words: tuple[Literal["random", "public"], ...] = ("public",)
    places: tuple[int, ...] = (1, 2)


def test_settings_of_several_values_are_separated_by_commas(
    record_of, run, model_files, tmp_path, monkeypatch
):
    monkeypatch.setitem(methods._things, "several", Several)
    arguments = ("clean", model_files / "planted.toml", *images(model_files), "--method", "several")
    arguments += ("--out", tmp_path / "out.safetensors", *QUICK)
    _, record = record_of(
        *arguments, "sizes=3,5", "shares=0.1,0.2", "words=random,public", "places="
    )
    settings = record["method"]["configuration"]
    assert settings["sizes"] == [3, 5] and settings["shares"] == [0.1, 0.2]
    assert settings["words"] == ["random", "public"] and settings["places"] == []
    for wrong in ("sizes=3,five", "shares=0.1", "words=random,pixels", "sizes=3,,5"):
        code, _, error = run(*arguments, wrong)
        assert code == 2 and f"--set recipe.epochs=1 {wrong}: " in error


def test_the_report_can_go_elsewhere(run, model_files, tmp_path):
    page = tmp_path / "page.html"
    arguments = ("--out", tmp_path / "out.safetensors", "--report", page, "--quiet")
    run("clean", model_files / "twin.toml", *images(model_files), *arguments)
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "out.safetensors"}


# -- evaluate --------------------------------------------------------------------------------------


def test_evaluate_measures_with_the_known_trigger(run, record_of, model_files):
    def evaluate(model, *more):
        arguments = ("evaluate", model_files / model, *images(model_files, "test"))
        return (*arguments, "--trigger", "bad-nets:target=4,size=2", *more)

    code, record = record_of(*evaluate("planted.toml"))
    assert code == 0 and record["attack"].startswith("BadNets(target=4, size=2")
    assert record["scores"]["asr"]["value"] > 0.95 and record["scores"]["acc"]["value"] > 0.95
    assert record["model"]["architecture"] == "bezoar:small-cnn"
    assert len(record["model"]["sha256"]) == len(record["images"]["sha256"]) == 64
    assert {"bezoar", "created", "seed", "device", "versions", "command"} <= record.keys()
    _, twin = record_of(*evaluate("twin.toml"))
    assert twin["scores"]["asr"]["value"] < 0.05 and twin["scores"]["ra"]["value"] > 0.9
    _, out, _ = run(*evaluate("planted.toml"))
    assert [line.split()[0] for line in out.splitlines()] == ["ACC", "ASR", "RA"]
    assert "497 images" in out


def test_evaluate_takes_a_trigger_from_a_file_beside_the_user(
    record_of, model_files, tmp_path, monkeypatch
):
    pattern, mask = np.zeros((2, 1, 8, 8), np.float32)
    mask[0, 6:, 6:] = 1
    pattern[0, 6:, 6:] = np.eye(2)  # the same patch as the fixture's attack
    monkeypatch.chdir(tmp_path)
    Path("triggers").mkdir()
    np.save("triggers/patch.npy", np.stack([pattern, mask]))
    arguments = ("evaluate", model_files / "planted.toml", *images(model_files, "test"))
    _, stored = record_of(
        *arguments, "--trigger", "stored-pattern:file=triggers/patch.npy,target=4"
    )
    _, known = record_of(*arguments, "--trigger", "bad-nets:target=4,size=2")
    assert stored["scores"] == known["scores"]


# -- methods ---------------------------------------------------------------------------------------


def test_methods_lists_them_with_what_they_need(run, record_of):
    code, out, _ = run("methods")
    assert code == 0
    assert "tac: " in out and "ft: " in out
    assert "arXiv 2511.08944" in out and "needs: labelled images" in out
    _, record = record_of("methods")
    rows = {row["name"]: row for row in record["methods"]}
    assert rows["tac"]["finds the target class"] and not rows["ft"]["finds the target class"]


def test_methods_shows_the_settings_of_one(run):
    code, out, _ = run("methods", "ft")
    assert code == 0 and "recipe.epochs = 20" in out and "tac" not in out
    assert run("methods", "ft", "--quiet") == (0, "", "")
