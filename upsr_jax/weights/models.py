"""Find models by their names: the built-in one, the user's own, and those of a hub.

A hub is asked only for a name such as "owner/model" that is no folder here. What it gives is kept
in the user's folder of models, under that name, and is not asked for again.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from upsr_jax.files.find import check_local
from upsr_jax.files.whole import (
    file_sha256,
    naming_full_disk,
    restore_former,
    whole_file,
    whole_folder,
    write_json,
)
from upsr_jax.weights.model_folder import CHECKSUMS, CONFIG, SOURCE, WEIGHTS, load_model

BUILT_IN_MODEL = Path(__file__).parents[1] / "assets" / "lite_x4"
NAME = re.compile(r"\w[\w.-]*")
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def models_folder() -> Path:
    """Return the user's folder of models: $UPSR_MODELS, or one in the user's data folder."""
    if own := os.environ.get("UPSR_MODELS"):
        return Path(own).expanduser()
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "upsr_jax" / "models"


def find_model(model: str | Path | None = None) -> Path:
    """Return the folder of a model: of that path, or of that name in the user's folder of models.

    None and "lite_x4" are the built-in model. A name such as "owner/model" that is neither is
    downloaded from huggingface.co by the package huggingface_hub. Raises FileNotFoundError or
    ValueError if there is no such model or it can't be had.
    """
    if not model:
        return BUILT_IN_MODEL
    check_local(model)
    folder = Path(model)
    name = folder.as_posix()
    restore_former(folder)
    is_hubs = HUB_NAME.fullmatch(name) is not None
    if os.path.exists(folder) or not (is_hubs or NAME.fullmatch(name)):
        return folder
    if name == BUILT_IN_MODEL.name:
        return BUILT_IN_MODEL
    stored = models_folder() / name
    restore_former(stored)
    if stored.is_dir():
        return stored
    if not is_hubs:
        raise FileNotFoundError(
            f"{name} is not a folder, nor a model in {models_folder()}: give a model's folder, or "
            "a name that `upsr models` lists"
        )
    download(name, stored)
    return stored


def download(name: str, folder: Path) -> None:
    """Download a model "owner/model" from huggingface.co into a folder, whole or not at all.

    Only weights, config and their sums are taken, and checked. The folder's source.json says where
    they are from: the revision, and the sum of each file. Raises FileNotFoundError without the
    package huggingface_hub, and ValueError if it can't be downloaded or is no model of this
    program.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise FileNotFoundError(
            f"{name} is not a folder; if it is a model on huggingface.co, "
            "pip install 'upsr_jax[hub]' to download it"
        ) from error
    files = (WEIGHTS, CONFIG, CHECKSUMS)
    try:
        with naming_full_disk(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(folder) as part:
            fetched = part / "fetched"
            snapshot = fetch(snapshot_download, name, fetched, files)
            for file in files:
                if (snapshot / file).is_file():
                    with (snapshot / file).open("rb") as source, whole_file(part / file) as target:
                        shutil.copyfileobj(source, target)
            shutil.rmtree(fetched)
            try:
                load_model(part)
            except (FileNotFoundError, ValueError) as error:
                reason = str(error).replace(f"{part}{os.sep}", "").replace(str(part), "the folder")
                raise ValueError(
                    f"{name} on huggingface.co is no model of this program: {reason}"
                ) from error
            sums = {file: file_sha256(part / file) for file in files}
            write_json(
                part / SOURCE, {"repository": name, "revision": snapshot.name, "sha256": sums}
            )
    except PermissionError as error:
        raise ValueError(
            f"{models_folder()} can't be written to: set UPSR_MODELS to a folder that can"
        ) from error


def fetch(
    snapshot_download: Callable[..., Any], name: str, folder: Path, files: Sequence[str]
) -> Path:
    """Call the hub's function, and say in one sentence why it fails; return where the files are."""
    try:
        return Path(
            snapshot_download(
                name, allow_patterns=list(files), cache_dir=folder, library_name="upsr_jax"
            )
        )
    except Exception as error:  # of several packages
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(
            f"{name} is not a folder, and could not be downloaded from huggingface.co "
            f"({reason.rstrip('.: ')}): check the name, and the connection"
        ) from error


def list_models() -> Iterator[tuple[str, Path]]:
    """Yield name and folder of the built-in model and of all in the user's folder of models."""
    yield BUILT_IN_MODEL.name, BUILT_IN_MODEL
    top = models_folder()
    for folder in sorted([*top.glob("*/"), *top.glob("*/*/")]):
        name = folder.relative_to(top).as_posix()
        is_named = NAME.fullmatch(name) or HUB_NAME.fullmatch(name)
        if is_named and any((folder / file).exists() for file in (WEIGHTS, CONFIG)):
            yield name, folder
