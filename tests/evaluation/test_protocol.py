"""The protocol of an evaluation changes with all that its numbers depend on."""

import jax
import pytest
from tiny_model import changed

from configs import tiny
from upsr_jax.evaluation.protocol import collect_settings, describe_protocol
from upsr_jax.models.config import ModelConfig
from upsr_jax.train.config import eval_settings


def protocol(metrics=("psnr_y",), **changes):
    """Describe the tiny setting, changed at paths such as `diffusion__kappa`."""
    config = changed(tiny.get_config(), **{"eval__lr": "", **changes})
    return describe_protocol(
        collect_settings(ModelConfig.of(config), {}, eval_settings(config), metrics)
    )


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("diffusion", dict(diffusion__kappa=1.25)),
        ("diffusion", dict(diffusion__steps=9)),
        ("low resolution", dict(degradation__first__jpeg_quality=(31, 32))),
        ("low resolution", dict(eval__lr="lq")),
        ("arithmetic", dict(eval__precision="bfloat16")),
        ("seed", dict(eval__seed=7)),
        ("fidelity", dict(eval__fidelity=0.5)),
        ("tiling", dict(eval__tile=256)),
        ("tiling", dict(eval__blend="feather")),
        ("noise", dict(eval__noise_by_name=False)),
    ],
)
def test_settings_change_it(key, changes):
    assert protocol(**changes)[key] != protocol()[key]


def test_precision_of_products_changes_it():
    before = protocol()
    with jax.default_matmul_precision("highest"):
        after = protocol()
    found = [key for key in before if before[key] != after[key]]
    assert found == ["arithmetic"] and "highest" in after["arithmetic"]


def test_what_is_not_used_does_not_change_it():
    """Neither the degradation where images are given, nor the diffusion of an estimator alone."""
    given = dict(eval__lr="lq")
    assert protocol(**given, degradation__first__jpeg_quality=(31, 32)) == protocol(**given)
    alone = dict(network="estimator")
    assert protocol(**alone, diffusion__kappa=1.25) == protocol(**alone)
