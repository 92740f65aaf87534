"""Train or evaluate: python -m upsr_jax.main --config configs/realsr_x4.py --workdir runs/a."""

import logging
import sys

import absl.logging
from absl import app, flags
from ml_collections import config_flags

from upsr_jax.evaluate import evaluate
from upsr_jax.train import train_and_evaluate

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints, metrics and pictures.")
MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do.")


def main(_: list[str]) -> None:
    """Run the chosen mode; what the user can mend ends it with one sentence, not a traceback."""
    absl.logging.set_verbosity(absl.logging.WARNING)  # orbax would fill the screen
    logging.getLogger("upsr_jax").setLevel(logging.INFO)
    run = {"train": train_and_evaluate, "evaluate": evaluate}[MODE.value]
    try:
        run(CONFIG.value, WORKDIR.value)
    except (OSError, FloatingPointError) as error:
        sys.exit(f"upsr_jax: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
