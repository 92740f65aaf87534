"""A model folder of any content is either a whole model or refused with one line that names it.

    python tests/fuzz/test_fuzz_model_folders.py 10000

is the long run, from seeds of its own.
"""

import hashlib
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from mutants import mutate
from tiny_model import changed, draw

from configs import tiny
from upsr_jax.models.build import init_estimator
from upsr_jax.models.config import ModelConfig
from upsr_jax.weights.model_folder import CHECKSUMS, CONFIG, WEIGHTS, load_model, save_model

FILES = (WEIGHTS, CONFIG, CHECKSUMS)
KINDS = ("bytes", "bytes and sums", "values")
HOSTILE = (
    *(None, True, "", "ddim", "1", -1, 0, 1, 2, 0.5, 3.7, 1e9, 10**9, 10**30, -(10**30)),
    *(math.nan, math.inf, -math.inf, [], [[]], [1], [1, 1, 1, 1], [2] * 999, {}, {"a": 1}),
)


def write_model(folder: Path) -> dict[str, bytes]:
    """Write a small model and return its files' contents."""
    config = changed(tiny.get_config(), network="estimator", estimator__depths=(1,))
    config = ModelConfig.of(config)
    params = jax.tree.map(np.float32, draw(init_estimator, config.estimator))
    save_model(folder, config, {"estimator": params})
    return {name: (folder / name).read_bytes() for name in FILES}


def damage(folder: Path, kind: str, rng: np.random.Generator) -> str:
    """Damage a model folder in one of three ways; return what was done."""
    if kind == "values":
        done = damage_values(folder, rng)
    else:  # by accident, which the sums tell, or by a wrong program, or on purpose
        done = FILES[rng.integers(3 if kind == "bytes" else 2)]
        (folder / done).write_bytes(mutate((folder / done).read_bytes(), rng))
    if kind != "bytes":
        sums = {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES[:2]
        }
        (folder / CHECKSUMS).write_text("".join(f"{sums[name]}  {name}\n" for name in sums))
    return done


def damage_values(folder: Path, rng: np.random.Generator) -> str:
    config = json.loads((folder / CONFIG).read_text())
    done = []
    for _ in range(rng.integers(1, 3)):
        block: Any = config
        key = str(rng.choice(list(block)))
        while isinstance(block[key], dict) and block[key] and rng.random() < 0.9:
            block = block[key]
            key = str(rng.choice(list(block)))
        block[key] = HOSTILE[rng.integers(len(HOSTILE))]
        done.append(f"{key} = {str(block[key])[:50]}")
        if rng.random() < 0.1 and len(block) > 1:
            del block[key]
    (folder / CONFIG).write_text(json.dumps(config))
    return ", ".join(done)


def check_one(folder: Path, contents: dict[str, bytes], kind: str, seed: int) -> None:
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    done = damage(folder, kind, np.random.default_rng((seed, KINDS.index(kind))))
    try:
        _, params = load_model(folder)
    except (ValueError, FileNotFoundError) as error:
        assert str(folder) in str(error) and "\n" not in str(error), (done, error)
    else:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)), done
        if kind == "bytes":
            assert all((folder / name).read_bytes() == contents[name] for name in FILES[:2]), done


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_folder_is_refused_in_one_line(tmp_path, kind):
    contents = write_model(tmp_path / "model")
    for seed in range(100):
        check_one(tmp_path / "model", contents, kind, seed)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        contents = write_model(Path(place) / "model")
        for seed in range(100, 100 + int(sys.argv[1])):
            for kind in KINDS:
                check_one(Path(place) / "model", contents, kind, seed)
