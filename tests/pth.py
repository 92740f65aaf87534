"""Write .pth files of any content as PyTorch does, without PyTorch."""

import io
import itertools
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np


class Call:
    """Pickles as a call of what bears a dotted name, there or not, and nothing happens here."""

    def __init__(self, name: str, *arguments: Any):
        self.name, self.arguments = name, arguments

    def __reduce__(self):
        return named(self.name), self.arguments


class Storage:
    """A tensor's numbers, which lie outside of the pickle."""

    def __init__(self, data: bytes, kind: str, count: int):
        self.data, self.kind, self.count = data, kind, count


def named(name: str) -> Any:
    """Make what pickles by this name."""
    module, _, name = name.rpartition(".")
    return type(name, (), {"__module__": module})


def tensor(
    array: np.ndarray,
    shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    offset: int = 0,
    kind: str = "FloatStorage",
) -> Call:
    """Pickle as a dense tensor, or as another view of an array's numbers than the array itself."""
    array = np.array(array, order="C")
    storage = Storage(array.tobytes(), kind, array.size)
    shape = array.shape if shape is None else shape
    steps = [step // array.itemsize for step in array.strides] if strides is None else strides
    arguments = storage, offset, tuple(shape), tuple(steps), False, OrderedDict()
    return Call("torch._utils._rebuild_tensor_v2", *arguments)


class Pickler(pickle.Pickler):
    """Keep storages apart, and look up no name that is pickled."""

    def __init__(self, file: Any, protocol: int):
        super().__init__(file, protocol)
        self.storages: list[Storage] = []

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Storage):
            return None
        self.storages.append(obj)
        kind, key = named(f"torch.{obj.kind}"), str(len(self.storages) - 1)
        return "storage", kind, key, "cpu", obj.count

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type) and obj.__module__ != "builtins":
            module = ModuleType(obj.__module__)
            setattr(module, obj.__name__, obj)
            sys.modules |= {obj.__module__.partition(".")[0]: module, obj.__module__: module}
        return NotImplemented


def dump(content: Any, protocol: int = 2) -> tuple[bytes, list[Storage]]:
    """Pickle any content; give its storages beside."""
    file = io.BytesIO()
    with patch.dict(sys.modules):
        pickler = Pickler(file, protocol)
        pickler.dump(content)
    return file.getvalue(), pickler.storages


def save_pth(content: Any, path: Path, protocol: int = 2, compression: int = 0) -> Path:
    """Write a file of today's format."""
    pickled, storages = dump(content, protocol)
    write_zip(path, pickled, [storage.data for storage in storages], compression)
    return path


def write_zip(path: Path, pickled: bytes, storages: list[bytes], compression: int = 0) -> None:
    """Write a file of today's format, of a pickle that may be anything."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        for i, data in enumerate(storages):
            archive.writestr(f"archive/data/{i}", data)
        archive.writestr("archive/version", "3\n")


def save_old(content: Any, path: Path) -> Path:
    """Write a file of the format of before 2020."""
    pickled, storages = dump(content)
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    keys = list(map(str, range(len(storages))))
    begin = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, machine)]
    numbers = itertools.chain.from_iterable((struct.pack("<q", s.count), s.data) for s in storages)
    path.write_bytes(b"".join([*begin, pickled, pickle.dumps(keys, 2), *numbers]))
    return path
