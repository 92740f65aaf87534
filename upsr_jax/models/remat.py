"""Rematerialization: drop activations in training and compute them again for the gradients."""

from typing import Any

import flax.linen as nn
import jax


def is_product_with_weights(primitive: Any, *_: Any, **params: Any) -> bool:
    """Tell convolutions and dense layers from all else; attention's products have batch axes."""
    if primitive.name == "dot_general":
        _, batch_axes = params["dimension_numbers"]
        return not any(batch_axes)
    return primitive.name == "conv_general_dilated"


SAVED = {"selective": is_product_with_weights, "full": jax.checkpoint_policies.nothing_saveable}


def rematerialize(target: Any, remat: str) -> Any:
    """Wrap a module class, or a method of one, so that training it keeps fewer activations.

    `remat` says what is computed again in the backward pass (arXiv 2205.05198, Sec. 5): "none";
    "selective", all but convolutions and dense layers, that is, much memory for little arithmetic;
    or "full", all from the target's inputs. Parameters, outputs and gradients stay the same.

    Raises:
      ValueError: `remat` is none of these.
    """
    if remat == "none":
        return target
    if remat not in SAVED:
        raise ValueError(f"remat must be none, {' or '.join(SAVED)}, not {remat!r}")
    return nn.remat(target, policy=SAVED[remat])
