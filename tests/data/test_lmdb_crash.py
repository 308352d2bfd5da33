"""A build that is killed at random moments is finished by the next one; benchmarks/lmdb_kill.py does it with 10,000."""

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "lmdb_kill.py"


def test_killed_builds_lose_nothing(tmp_path):
    figures = runpy.run_path(str(SCRIPT))["kill_and_finish"](tmp_path, files=500, kills=3, seed=0)
    assert figures["equal in the last"] == 500
    assert sum(figures["training said"].values()) == 3
