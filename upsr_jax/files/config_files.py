"""Find configs by name or by path: the flag --config of `upsr_jax.main` and of the scripts."""

import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

PACKAGE = Path(__file__).parents[1]
# `configs` is too general a name to install. A wheel holds it in this folder, alone, and only a
# process that reads a config looks there for what the configs import of each other.
SHIPPED = PACKAGE / "shipped"


def define_config_flag() -> flags.FlagHolder[Any]:
    """Define --config NAME or PATH, and --config.KEY=VALUE for all that it holds."""
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        "A config by name, as realsr_x4 or eval/realsr, or a file.",
        lock_config=True,
    )
    flags.FLAGS["config"].parser = ConfigParser("config", lock_config=True)
    return holder


class ConfigParser(ConfigFileFlagParser):
    """Reads what `find_config` finds."""

    def parse(self, path: str) -> Any:
        """Return what the config's `get_config` returns."""
        return super().parse(str(find_config(path)))


def find_config(name: str) -> Path:
    """Return the file that a path or a name stands for; ValueError lists the names there are."""
    folder = (SHIPPED if SHIPPED.exists() else PACKAGE.parent) / "configs"
    if str(folder.parent) not in sys.path:
        sys.path.append(str(folder.parent))
    if Path(name).is_file():
        return Path(name)
    files = [path for path in sorted(folder.rglob("*.py")) if "def get_config(" in path.read_text()]
    known = {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}
    wanted = name.removeprefix("configs/").removesuffix(".py")
    if wanted not in known:
        raise ValueError(f"neither a file nor one of the configs, which are {', '.join(known)}")
    return known[wanted]
