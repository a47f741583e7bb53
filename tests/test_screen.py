"""Text on the screen, and in a pipe."""

from __future__ import annotations

import sys

from bezoar.screen import NO_SCREEN, plain_console, print_fleet

LONG = "models/" + "a-very-long-name-" * 8 + "of-a-model.toml"
SUMMARY = {
    "models": [
        {
            "model": LONG,
            "line": 2,
            "images": "clean.npz",
            "verdict": "suspicious",
            "suspect_names": ["speed limit 30"],
            "p": 0.002,
            "seconds": 12.0,
        }
    ],
    "counts": {"suspicious": 1},
}


def test_a_pipe_gets_whole_lines(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    print_fleet(SUMMARY)
    (row,) = (line for line in capsys.readouterr().out.splitlines() if LONG in line)
    assert row.split() == [LONG, "suspicious", "speed", "limit", "30", "0.0020", "12.0"]


def test_a_width_that_is_given_is_kept(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    print_fleet(SUMMARY)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 3 and all(len(line) <= 60 for line in lines)


def test_a_screen_gets_lines_of_its_width(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert plain_console().width < NO_SCREEN
