"""A run that is killed three times ends in the bits of one that is not; scripts/kill_test.py."""

import sys

from launch import ROOT, launch
from test_topologies import command  # noqa: F401, the fixture


def test_three_kills_change_nothing(command, tmp_path):  # noqa: F811
    script = [sys.executable, str(ROOT / "scripts" / "kill_test.py"), "--kills", "3"]
    flags = [*command[3:], "--config.train.checkpoint_every=3"]
    (result,) = launch([*script, "--folder", str(tmp_path / "runs"), "--", *flags], timeout=500)
    assert result.stdout.count("kill ") == 3
    assert "the same: step 20, " in result.stdout
