"""Ray for the tests that need it, on the loopback interface only."""

import os

import pytest


def import_ray():
    # As the executor sets them: no network, no statistics.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
