import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_stages_add_up_and_cores_follow_from_them():
    run = subprocess.run(
        [
            *(sys.executable, "scripts/benchmark_pipeline.py", "--config=configs/tiny.py"),
            *("--config.data.folders=upsr_jax/assets/photos", "--config.data.batch_size=4"),
            *("--config.data.crop_size=64", "--config.data.num_threads=1", "--images=40"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "64-pixel crops: " in run.stdout
    times = {name: float(ms) for name, ms in re.findall(r"^  (.+?) +([\d.]+) ms", run.stdout, re.M)}
    total = times.pop("in all")
    names = {"read, decode", "crop", "blur", "resize", "noise", "JPEG", "sinc", "all else"}
    assert times.keys() == names
    assert all(milliseconds > 0 for milliseconds in times.values())
    assert sum(times.values()) == pytest.approx(total, abs=0.05)
    rates, cores = (
        [float(word) for word in re.findall(rf"^  {line} +(.+)$", run.stdout, re.M)[0].split()]
        for line in ("images a second", "cores for them")
    )
    assert rates == [50, 100, 200, 500, 1000]
    assert cores == pytest.approx([rate * total / 1000 for rate in rates], abs=0.06, rel=0.02)
    assert re.search(r"here, by 1 threads: [\d.]+ images a second", run.stdout)
