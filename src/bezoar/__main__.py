"""Runs the command line as ``python -m bezoar``."""

from bezoar.cli import main

main()
