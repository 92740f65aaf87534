"""On eight devices each one holds its eighth of the state, from the first array on."""

import sys

from launch import launch

PROGRAM = """
import jax
import numpy as np
from pathlib import Path
from small import get_config
from upsr_jax.train.checkpoints import choose_checkpoint, open_checkpoints, restore, save
from upsr_jax.train.optimizer import create_optimizer, create_schedule
from upsr_jax.train.state import abstract_state, create_sharded_state
from upsr_jax.train.sharding import create_mesh, to_global
from upsr_jax.train.step import make_train_step

config = get_config()
config.network = "estimator"
config.estimator.update(embed_dim=64, depths=(1,), reduced_dim=8)
mesh = create_mesh(1, 8)
optimizer = create_optimizer(create_schedule(**config.schedule), **config.optimizer)


def report(name, state):
    large = [x for x in jax.tree.leaves(state) if x.size >= 4096]
    assert len(large) >= 4 * 4  # kernels: params, average and two moments
    for x in large:
        for shard in x.addressable_shards:
            assert shard.data.nbytes * 8 == x.nbytes, (name, x.shape)
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    print(name, round(held / sum(x.nbytes for x in jax.tree.leaves(state)), 3))


def loss_fn(params, frozen, batch, keys):
    loss = sum((x**2).sum() for x in jax.tree.leaves(params)) * batch["hr"].mean()
    return loss, {"loss": loss}


state = create_sharded_state(config, optimizer, mesh)
report("first", state)
rows = to_global({"hr": np.ones((8, 4, 4, 3), np.float32), "stop": np.zeros(8, bool)}, mesh)
shardings = jax.tree.map(lambda x: x.sharding, state)
step = make_train_step(loss_fn, optimizer, 0.9, 0, 1, mesh)
state, _ = jax.jit(step, out_shardings=(shardings, None), donate_argnums=0)(state, {}, rows)
report("stepped", state)
workdir = Path.cwd()
with open_checkpoints(workdir, config) as checkpoints:
    save(checkpoints, config, state, {}, [])
with open_checkpoints(workdir, config) as checkpoints:
    shapes = abstract_state(config, optimizer, mesh)
    state = restore(workdir, choose_checkpoint(workdir), config, shapes, {})
report("restored", state)
"""


def test_no_device_holds_more_than_its_part(tmp_path):
    paths = {"PYTHONPATH": ":".join(sys.path)}
    code = f"import os; os.chdir({str(tmp_path)!r})\n{PROGRAM}"
    (ended,) = launch([sys.executable, "-c", code], devices=8, env=paths)
    shares = dict(line.split() for line in ended.stdout.splitlines())
    assert shares.keys() == {"first", "stepped", "restored"}
    assert all(float(share) < 0.2 for share in shares.values()), shares
