"""Names from files that are not trusted: shown on the terminal, and never obeyed by it."""

import ast
import csv
import io
import json
import re
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from rich.console import Console
from rich.table import Table

from bezoar import cli, pipeline, screen, sifting
from bezoar.intake import read_weights
from bezoar.methods.rnp_unlearning import Unlearning
from bezoar.screen import complain, plain_console, progress_bar, say
from bezoar.visible import visible

FACTS = ("--architecture", "bezoar:small-cnn", "--mean", "0.3", "--std", "0.35")
STEERING = "\x1b[2J\x1b[H\x1b[32mverdict: NOTHING FOUND\r\n\x07\x7f\x9b2J\u202edne\u2066"
SHOWN = r"\x1b[2J\x1b[H\x1b[32mverdict: NOTHING FOUND\r\n\x07\x7f\x9b2J\u202edne\u2066"
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def run(capsys):
    """(arguments…) → exit code and all that was shown, none of which steers a terminal."""

    def call(*arguments):
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        shown = "".join(capsys.readouterr())
        assert not OBEYED.search(shown), shown
        assert "\nverdict: NOTHING" not in shown
        return code, shown

    return call


@pytest.fixture
def hostile(model_files, tmp_path):
    """A description whose classes are called by a text that steers a terminal."""
    names = [f"{k}{STEERING}" for k in range(10)]
    path = tmp_path / "hostile.toml"
    good = (model_files / "planted.toml").read_text()
    good = good.replace(
        '"planted.safetensors"', json.dumps(str(model_files / "planted.safetensors"))
    )
    kept = [line for line in good.splitlines() if not line.startswith("classes")]
    path.write_text("\n".join([*kept, f"classes = {json.dumps(names)}"]).replace("\x7f", "\\u007f"))
    return path


# -- the one function, and all that prints ---------------------------------------------------------


def test_what_steers_is_spelled_out_and_the_rest_stays():
    assert visible(STEERING) == SHOWN
    assert visible("\ud800 a\tb") == r"\ud800 a\tb", "what no terminal takes, and a tab"
    plain = "größe 大 \\x1b [bold] :smile: 👍🏽 é א"
    assert visible(plain) == plain


def test_text_cells_and_headings_of_tables_are_made_visible(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    console = plain_console()
    table = Table(box=None)
    table.add_column(STEERING)
    table.add_column("right", justify="right")
    table.add_row(STEERING, "1")
    table.add_row(":smile: [bold]", "1")
    console.print(table)
    console.print(STEERING, style="bold")
    say(STEERING)
    heading, row, as_it_is, text, said, end = capsys.readouterr().out.split("\n")
    for line in (heading, row, text, said):
        assert SHOWN in line and not OBEYED.search(line)
    assert ":smile: [bold]" in as_it_is and end == ""
    assert len(heading.rstrip()) - len("right") == len(row.rstrip()) - 1 - len("righ"), "aligned"


def test_a_reason_of_several_lines_stays_one_reason(capsys):
    complain(f"it does not fit:\n  missing: {STEERING}")
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == "bezoar: it does not fit:"
    before, after = SHOWN.split(r"\n")
    assert (second, third) == (f"    missing: {before}", f"  {after}"), "what is forged stands back"


def test_the_progress_bar_shows_names_as_they_are(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(
        "rich.console.Console", lambda **_: Console(file=shown, force_terminal=True, width=200)
    )
    with progress_bar(quiet=False) as progress:
        progress(f"in work ([/bold] {STEERING}: tac)", 0.5)
    assert f"[/bold] {SHOWN}" in shown.getvalue()
    assert "\x1b[32mverdict" not in shown.getvalue() and "\x1b[2J" not in shown.getvalue()


def test_nothing_but_the_screen_prints():
    package = Path(screen.__file__).parent
    for path in (package / "cli.py", *(package / "commands").glob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        called = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
        assert not called & {"print", "Console"}, path


# -- the commands ----------------------------------------------------------------------------------


def test_inspect_of_a_file_with_a_hostile_key_and_extra(run, model_files, tmp_path):
    state = dict(read_weights(model_files / "planted.safetensors").tensors)
    path = tmp_path / "extra.pt"
    torch.save({"state_dict": state, STEERING: 1, "\ud800": 2}, path)
    code, shown = run("inspect", path)
    assert code == 0 and SHOWN in shown and r"\ud800" in shown


def test_a_tensor_with_a_hostile_name_in_an_error(run, model_files, tmp_path):
    state = dict(read_weights(model_files / "planted.safetensors").tensors)
    path = tmp_path / "named.safetensors"
    safetensors.torch.save_file(state | {STEERING: torch.zeros(2)}, path)
    code, shown = run("scan", path, *FACTS, "--images", model_files / "clean.npz")
    assert code == 2 and SHOWN.split(r"\n")[0] in shown
    state[STEERING] = torch.tensor([float("nan")])
    safetensors.torch.save_file(state, path)
    code, shown = run("scan", path, *FACTS, "--images", model_files / "clean.npz")
    assert code == 2 and SHOWN.split(r"\r")[0] in shown


def test_a_class_with_a_hostile_name(run, hostile, model_files, tmp_path):
    given = (hostile, "--images", model_files / "clean.npz")
    code, shown = run("scan", *given, "--methods", "tac", "--report", tmp_path / "r.html")
    assert code == 1 and shown.count(SHOWN) >= 2, "in the sentence and in the table"
    out = ("--out", tmp_path / "out.safetensors", "--scan-methods", "tac")
    code, shown = run("clean", *given, "--method", "ft", "--set", "recipe.epochs=1", *out)
    assert code == 0 and SHOWN in shown


def test_a_class_with_a_hostile_name_in_a_heap(run, hostile, model_files, monkeypatch):
    monkeypatch.setattr(sifting, "Unlearning", lambda: Unlearning(learning_rate=0.01, max_epochs=1))
    monkeypatch.setattr(sifting, "EXCESS", 1.0)
    heap = (model_files / "test.npz", "--images", model_files / "clean.npz")
    code, shown = run("sift", hostile, *heap, "--level", "0.3")
    assert code == 1 and SHOWN in shown


def test_a_class_with_a_hostile_name_without_a_synthetic_image(run, hostile, tmp_path):
    few = ("--steps", "1", "--count", "1", "--out", tmp_path / "out.npz")
    code, shown = run("synthesize", hostile, *few)
    assert code == 0 and SHOWN in shown


def test_a_hostile_model_of_a_manifest(run, hostile, model_files, tmp_path):
    path = tmp_path / "models.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "images"])
        writer.writerow([hostile, model_files / "clean.npz"])
    code, shown = run("scan", "--manifest", path, "--executor", "here", "--methods", "tac")
    assert code == 1 and SHOWN in shown


def test_a_defect_with_a_hostile_message(run, model_files, monkeypatch):
    def breaks(*_arguments, **_options):
        raise RuntimeError(STEERING)

    monkeypatch.setattr(pipeline, "scan", breaks)
    code, shown = run("scan", model_files / "twin.toml", "--images", model_files / "clean.npz")
    assert code == 2 and "a defect of bezoar" in shown and SHOWN.split(r"\n")[0] in shown
