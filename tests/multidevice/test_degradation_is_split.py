"""An image is degraded alike on one device and on eight, each of which has its rows alone."""

import sys

from launch import launch

PROGRAM = """
import jax
import numpy as np
from jax.sharding import Mesh
from configs.degradations import imagenet_test
from small import get_config
from upsr_jax.train.degradation import create_degrade
from upsr_jax.train.sharding import BATCH_AXES, to_global

config = get_config()
config.data.crop_size = 32
config.degradation = imagenet_test()  # of one order, which compiles faster
hr = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
place = np.stack([np.arange(8) // 5 + 3, np.arange(8)], axis=1).astype(np.int32)
results = []
for shape in ((1, 1), (2, 4)):
    mesh = Mesh(np.array(jax.devices()[: np.prod(shape)]).reshape(shape), BATCH_AXES)
    degrade_fn = create_degrade(config, mesh)
    batch = to_global({"hr": hr, "place": place, "stop": np.zeros(8, bool)}, mesh)
    with jax.transfer_guard("disallow"):
        degraded = degrade_fn(batch)
    assert set(degraded) == {"hr", "lr", "stop"}
    for key in ("hr", "lr"):
        assert degraded[key].sharding.is_equivalent_to(batch["hr"].sharding, 4)
        assert len(degraded[key].addressable_shards[0].data) == 8 // mesh.size
    results.append(np.asarray(degraded["lr"]))
for result in results:
    np.testing.assert_array_equal(result, results[0])
assert len({image.tobytes() for image in results[0]}) == 8

order = [5, 0, 7, 2, 1, 6, 3, 4]  # as batches out of a pool have it
batch = to_global({"hr": hr[order], "place": place[order]}, mesh)
np.testing.assert_array_equal(np.asarray(degrade_fn(batch)["lr"]), results[0][order])
np.testing.assert_array_equal(np.rint((np.asarray(degraded["hr"]) + 1) * 127.5), hr)
"""


def test_no_number_of_devices_changes_an_image():
    paths = {"PYTHONPATH": ":".join(sys.path)}
    launch([sys.executable, "-c", PROGRAM], devices=8, env=paths)
