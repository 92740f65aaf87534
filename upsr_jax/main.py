"""Train or evaluate: python -m upsr_jax.main --config realsr_x4 --workdir runs/a.

On several hosts run the same command on each, under SLURM or with --coordinator.
"""

import logging
import os
import traceback
import warnings
from pathlib import Path

from absl import app, flags

from upsr_jax.files.config_files import define_config_flag

CONFIG = define_config_flag()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints, metrics and pictures.")
MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do.")
OUT = flags.DEFINE_string(
    "out", None, "Folder of the results of --mode evaluate; WORKDIR/evaluation if not given."
)
PROFILE = flags.DEFINE_string("profile", None, "START:END, steps to trace into WORKDIR/profile.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0 on.")


def main(_: list[str]) -> None:
    """Run the chosen mode; what the user can mend ends it with one sentence, not a traceback."""
    # Imported here, as loader workers import this module and need none of it.
    import cv2

    from upsr_jax.cluster import join, stop
    from upsr_jax.cluster.compiler import use_safe_compiler
    from upsr_jax.cluster.devices import check_devices
    from upsr_jax.files.names import show
    from upsr_jax.train.checkpoints import quiet_orbax
    from upsr_jax.train.evaluate import evaluate
    from upsr_jax.train.loop import train_and_evaluate

    use_safe_compiler()
    quiet_orbax()
    logging.getLogger("upsr_jax").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", module="PIL")  # of odd metadata in photos
    cv2.setNumThreads(1)  # as `data.pipeline` asks for
    try:
        profile = parse_steps(PROFILE.value)
        join.initialize(COORDINATOR.value, PROCESSES.value, PROCESS_ID.value)
        check_devices()
        workdir = os.path.expanduser(str(WORKDIR.value))
        if OUT.value and MODE.value == "train":
            raise ValueError("--out is for --mode evaluate: training writes to --workdir")
        keep_programs(Path(workdir).absolute() / "compiled")
        if MODE.value == "train":
            train_and_evaluate(CONFIG.value, workdir, profile)
        else:
            with stop.stoppable():
                evaluate(CONFIG.value, workdir, OUT.value and os.path.expanduser(OUT.value))
    except KeyboardInterrupt as stopped:  # of an evaluation; training ends after a step instead
        join.leave(f"upsr_jax: {stop.SENTENCE}", stop.exit_status(stopped))
    except Exception as error:
        mendable = isinstance(error, OSError | ValueError | FloatingPointError | ImportError)
        sentence = join.explain(error) or (str(error) if mendable else None)
        join.leave(f"upsr_jax: {show(sentence)}" if sentence else traceback.format_exc())


def parse_steps(text: str | None) -> tuple[int, int] | None:
    """Read "START:END", the first and the last step of a trace."""
    if text is None:
        return None
    start, _, end = text.partition(":")
    if not (start.isdecimal() and end.isdecimal() and 1 <= int(start) <= int(end)):
        raise ValueError(f"--profile {text}: give the first and the last step, such as 10:12")
    return int(start), int(end)


def keep_programs(folder: Path) -> None:
    """Keep compiled programs for the next start, unless JAX_COMPILATION_CACHE_DIR names a place."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(folder))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
