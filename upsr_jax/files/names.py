"""Names of files: made of others without two alike, and shown so that they do no harm."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

# Control characters, those that turn or hide text (but not the joiners of emoji and Persian), and
# bytes that are no text.
UNSHOWN = re.compile(
    "[\0-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def show(text: object) -> str:
    r"""Write out a name, or a sentence with names, in one line that steers no terminal: \x1b."""
    return UNSHOWN.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def without_suffixes(paths: Sequence[Path]) -> list[Path]:
    """Drop the suffixes of paths, but where only that tells them apart."""
    bare = [path.with_suffix("") for path in paths]
    count = Counter(bare)
    return [path if count[name] > 1 else name for path, name in zip(paths, bare, strict=True)]


def alike(names: Mapping[Path, Path]) -> list[list[Path]]:
    """List the files that have one name with others, those of a name together."""
    groups: dict[Path, list[Path]] = {}
    for file, name in names.items():
        groups.setdefault(name, []).append(file)
    return [group for group in groups.values() if len(group) > 1]


def of_folders(folders: Iterable[Path]) -> dict[Path, Path]:
    """Name folders by their last parts; by all below the folder that holds them if two are alike.

    A single one needs no name.
    """
    whole = {folder: Path(os.path.abspath(folder)) for folder in folders}
    names = {folder: Path(path.name) for folder, path in whole.items()}
    if len(set(names.values())) < len(set(whole.values())):
        above = os.path.commonpath(whole.values())
        names = {folder: path.relative_to(above) for folder, path in whole.items()}
    return names if len(set(whole.values())) > 1 else dict.fromkeys(names, Path())
