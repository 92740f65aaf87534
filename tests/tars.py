"""Tars in memory, for tests of what reads them."""

import io
import tarfile
from typing import Literal


def add(tar, name, data, **attributes):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in attributes.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def make_tar(files, mode: Literal["w", "w:gz"] = "w"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, data in files.items():
            add(tar, name, data)
    return file.getvalue()
