"""Evaluate what a run has trained: `--mode evaluate`."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from upsr_jax.data.test_sets import find_entries
from upsr_jax.evaluation.run import evaluate_set
from upsr_jax.files.find import check_local
from upsr_jax.models.config import ModelConfig
from upsr_jax.train.checkpoints import read_checkpoint
from upsr_jax.train.config import check_config, eval_settings
from upsr_jax.weights.model_folder import check_same_diffusion, load_model, take_networks


def evaluate(
    config: ConfigDict, workdir: str | Path, out: str | Path | None = None
) -> dict[str, Any]:
    """Evaluate config.eval.model, or else the last checkpoint in `workdir`, into `out`.

    That is `workdir/evaluation` if not given. Every device has a whole copy of the networks and
    images of its own, whatever config.mesh says, which is for training. See `evaluate_set` for what
    it gets.
    """
    check_local(workdir, out or "")
    check_config(config)
    workdir = Path(workdir)
    settings = eval_settings(config)
    entries = find_entries(settings.images)  # before a model is asked for: sets take longer to get
    model_config = ModelConfig.of(config)
    params = load_params(model_config, settings.model, workdir)
    out = Path(out or workdir / "evaluation")
    return evaluate_set(model_config, params, settings, entries, out)


def load_params(config: ModelConfig, model: str, workdir: Path) -> dict[str, Any]:
    """Load the folder `model`, or where that is "" the last checkpoint in `workdir`.

    Raises ValueError if networks are missing, or they were trained for another config.
    """
    if model:
        name, (stored, params) = model, load_model(model)
    else:
        last = read_checkpoint(workdir)
        name, stored, params = workdir, last.config, last.model
    params = take_networks(name, stored, params, config, config.parts)
    if config.network == "denoiser":
        check_same_diffusion(name, stored, config)
        method = config.sampler["method"]
        if stored.sampler["method"] == "one_step" != method:
            raise ValueError(
                f"{name} was trained to restore in one step and has not learned {method}: set "
                "config.sampler.method to one_step"
            )
    return params
