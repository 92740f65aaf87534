"""Where arrays live on one device; tests/multidevice looks at several."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from upsr_jax.train.sharding import create_mesh, put, split_state


@pytest.mark.parametrize("sizes", [(2, 1), (1, 3), (0, 1), (-1, 2), (-1, 0), (-2, 1)])
def test_a_mesh_of_another_size_is_refused(sizes):
    with pytest.raises(ValueError, match=rf"data {sizes[0]} x fsdp {sizes[1]} doesn't fit 1 dev"):
        create_mesh(*sizes)


def test_the_longest_axis_that_divides_is_split():
    mesh = AbstractMesh((2, 4), ("data", "fsdp"))
    shapes = {
        "kernel": ((3, 3, 64, 128), PartitionSpec(None, None, None, "fsdp")),
        "other": ((3, 3, 128, 62), PartitionSpec(None, None, "fsdp")),
        "square": ((64, 64), PartitionSpec("fsdp")),
        "small": ((64, 63), PartitionSpec()),
        "odd": ((63, 65), PartitionSpec()),
        "scalar": ((), PartitionSpec()),
    }
    tree = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, (shape, _) in shapes.items()}
    for name, sharding in split_state(tree, mesh).items():
        assert sharding.spec == shapes[name][1], name


def test_put_keeps_values():
    mesh = create_mesh(1, 1)
    tree = {
        "a": np.arange(8192.0, dtype=np.float32).reshape(64, 128),
        "b": np.array([1, 2], np.float32),
    }
    placed = put(tree, split_state(tree, mesh))
    jax.tree.map(np.testing.assert_array_equal, placed, tree)
