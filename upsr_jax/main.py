"""Train or evaluate: python -m upsr_jax.main --config configs/realsr_x4.py --workdir runs/a."""

import logging

from absl import app, flags
from ml_collections import config_flags

from upsr_jax.evaluate import evaluate
from upsr_jax.train import train_and_evaluate

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints, metrics and pictures.")
MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do.")


def main(_: list[str]) -> None:
    """Run the chosen mode."""
    logging.getLogger().setLevel(logging.INFO)
    {"train": train_and_evaluate, "evaluate": evaluate}[MODE.value](CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
