"""Read and write files of PyTorch's weights as NumPy arrays, without PyTorch.

What is read is taken for data throughout: nothing that a pickle names is imported or called, and
memory is bounded by the bytes that a file has.
"""

import functools
import io
import itertools
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from upsr_jax.files.whole import whole_file

DTYPES = {
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
OLD_MAGIC, OLD_VERSION = 0x1950A86A20F9469CFC6C, 1001  # begin PyTorch's files of before 2020
MAX_STEPS = 2**20  # of a pickle; 30,000 tensors take as many
MAX_DEPTH = 4  # of wrappers around a state dict
MAX_NAME = 200


class Unknown(NamedTuple):
    """What a pickle names or makes, if it is no dense tensor of numbers; it is left at that."""

    name: str


class Storage(NamedTuple):
    """A row of numbers beside the pickle."""

    key: str
    dtype: np.dtype


class Tensor(NamedTuple):
    """A view of a storage, counted in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


File = io.BytesIO | io.BufferedReader


class Content(NamedTuple):
    """What a file's pickle holds, and how its storages are read."""

    tree: Any
    read_storage: Callable[[str], bytes]


def read_torch(path: str | Path) -> dict[str, dict[str, np.ndarray | Unknown]]:
    """Read the state dicts in a .pth or .safetensors file, whatever its suffix.

    They come by the keys of the dictionaries around them, joined by dots ("" for none), and hold
    what lies under text names beside at least one tensor. Every dtype is kept, bfloat16 too.
    Raises FileNotFoundError, and ValueError if the file is damaged, holds no state dict or claims
    more than it has.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing or is not a file")
    with path.open("rb") as file:
        start = file.read(64)
        read = _choose_format(path, start)
        file.seek(0)
        try:
            content, read_storage = read(file)
            found = dict(_state_dicts(content, functools.cache(read_storage), set()))
        except Exception as error:  # the many ways to stumble over a damaged file
            raise ValueError(
                f"{path} is damaged or no file of weights ({type(error).__name__}, "
                f"{_printable(str(error))}): download it again"
            ) from error
    if not found:
        raise ValueError(f"{path} holds no tensors by name, but {_describe(content)}")
    size = path.stat().st_size
    for key, entries in found.items():
        claimed = sum(x.nbytes for x in entries.values() if isinstance(x, np.ndarray))
        if claimed > size:
            raise ValueError(
                f"{path} has {size:,} bytes, but its {key or 'tensors'} would take {claimed:,}: "
                "save tensors that are expanded or share their numbers as copies"
            )
    return found


def write_torch(
    path: str | Path, arrays: Mapping[str, np.ndarray], key: str = "params_ema"
) -> None:
    """Write arrays to a .pth file under `key`, bit for bit; it appears whole or not at all."""
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with whole_file(Path(path)) as file, zipfile.ZipFile(file, "w") as archive:

        def add(name: str, data: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)

        add("data.pkl", _make_pickle(arrays, key))
        add("byteorder", b"little")
        for i, array in enumerate(arrays.values()):
            add(f"data/{i}", array.tobytes())
        add("version", b"3\n")


def _choose_format(path: Path, start: bytes) -> Callable[[File], Content]:
    """Tell by its first bytes how a file is read; raise ValueError if it is no file of weights."""
    if start[8:9] == b"{":
        return lambda _: Content(_read_safetensors(path), str.encode)
    if start.startswith(b"PK"):
        return _read_zip
    if start.startswith(b"\x80"):  # a pickle
        return _read_old
    cure = "the download failed, get the file itself"
    if not start:
        raise ValueError(f"{path} is empty (0 bytes): {cure}")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is not the weights but git-lfs's note of where they are: {cure}")
    if start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        raise ValueError(f"{path} is not the weights but a web page: {cure}")
    raise ValueError(f"{path} is neither a PyTorch nor a safetensors file: {cure}")


def _read_safetensors(path: Path) -> dict[str, np.ndarray | Unknown]:
    with safe_open(path, "np") as file:
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        return {
            name: Unknown(dtype) if dtype.startswith("F8") else file.get_tensor(name)
            for name, dtype in types.items()
        }


def _read_zip(file: File) -> Content:
    archive = zipfile.ZipFile(file)
    size = file.seek(0, os.SEEK_END)
    if sum(member.file_size for member in archive.infolist()) > size:
        raise ValueError("its parts overlap or are compressed")
    names = archive.namelist()
    root = next((name for name in names if name.endswith("/data.pkl")), None)
    if root is None:
        raise ValueError("a zip file of other things")
    root = root.removesuffix("data.pkl")
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("it is from a big-endian machine")
    tree = _read_pickle(io.BytesIO(archive.read(f"{root}data.pkl")), {})
    return Content(tree, lambda key: archive.read(f"{root}data/{key}"))


def _read_old(file: File) -> Content:
    """Read the format of before 2020: pickles in a row, and then the storages."""
    storages: dict[str, Storage] = {}
    begin = _read_pickle(file, storages), _read_pickle(file, storages)
    if begin != (OLD_MAGIC, OLD_VERSION):
        raise ValueError("a pickle, but not one of PyTorch's")
    _read_pickle(file, storages)  # the machine that it is from
    tree = _read_pickle(file, storages)
    data = {}
    for key in _read_pickle(file, storages):
        (count,) = struct.unpack("<q", file.read(8))
        data[key] = file.read(max(count, 0) * storages[key].dtype.itemsize)
    return Content(tree, data.__getitem__)


def _read_pickle(file: File, storages: dict[str, Storage]) -> Any:
    """Read one pickle as data, and note its storages.

    PyTorch's own reader takes 50 s for a file of nested lists; Python's would crash on nested
    keys.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop_marked() -> list[Any]:
        items = stack[marks[-1] :]
        del stack[marks.pop() :]
        return items

    def put(target: Any, items: list[Any]) -> None:
        if isinstance(target, dict):
            # A key of nested tuples would overflow the stack of the interpreter when it is hashed.
            pairs = zip(items[::2], items[1::2], strict=True)
            target.update(pair for pair in pairs if isinstance(pair[0], str | int))
        elif isinstance(target, list):
            target.extend(items)

    argument: Any
    for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if step == MAX_STEPS:
            raise ValueError("it holds more than weights")
        match opcode.name:
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(pop_marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "SETITEM":
                items = [stack.pop(-2), stack.pop()]
                put(stack[-1], items)
            case "APPEND":
                item = stack.pop()
                put(stack[-1], [item])
            case "SETITEMS" | "APPENDS" | "ADDITEMS":
                items = pop_marked()
                put(stack[-1], items)
            case "GLOBAL":
                stack.append(Unknown(_printable(argument.replace(" ", "."))))
            case "STACK_GLOBAL":
                stack[-2:] = [Unknown(_printable(f"{stack[-2]}.{stack[-1]}"))]
            case "REDUCE" | "NEWOBJ":
                stack[-2:] = [_make(*stack[-2:])]
            case "BINPERSID":
                stack.append(_find_storage(stack.pop(), storages))
            case "BUILD":
                stack.pop()  # the state of an object
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case _ if argument is not None:  # a number or a text
                stack.append(argument)
            case _:
                raise ValueError(f"its pickle has {opcode.name}")
    raise ValueError("its pickle has no end")


def _make(function: Any, arguments: Any) -> Any:
    """Say what a call gives, without calling anything."""
    name = function.name if isinstance(function, Unknown) else type(function).__name__
    match name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "torch._utils._rebuild_tensor_v2", (Storage(), _, _, _, _, _):
            return Tensor(*arguments[:4])
        case "torch._utils._rebuild_tensor_v2", (Unknown(), *_):
            return arguments[0]
        case (
            "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state",
            (Tensor(), *_),
        ):
            return arguments[0]
        case _:
            return Unknown(name)


def _find_storage(reference: Any, storages: dict[str, Storage]) -> Any:
    match reference:
        case ("storage", Unknown(name), str(key), str(), int(), *_) if name in DTYPES:
            return storages.setdefault(key, Storage(key, DTYPES[name]))
        case (str(), Unknown(name), *_):
            return Unknown(name)
        case _:
            return Unknown("a storage")


def _state_dicts(
    tree: Any,
    read_storage: Callable[[str], bytes],
    seen: set[int],
    key: str = "",
    depth: int = 0,
) -> Iterator[tuple[str, dict[str, np.ndarray | Unknown]]]:
    """Walk through dictionaries, to each but once: it may lie in another a thousand times."""
    if not isinstance(tree, dict) or id(tree) in seen or depth > MAX_DEPTH:
        return
    seen.add(id(tree))
    tensors = [name for name, value in tree.items() if isinstance(value, Tensor | np.ndarray)]
    named = [_is_name(name) for name in tensors]
    if any(named) and not all(named):
        raise ValueError(f"some tensors of {key or 'the file'} are not under text names")
    if any(named):
        yield key, {n: _to_array(x, read_storage) for n, x in tree.items() if _is_name(n)}
    for name, value in tree.items():
        if _is_name(name):
            place = f"{key}.{name}".lstrip(".")
            yield from _state_dicts(value, read_storage, seen, place, depth + 1)


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and key.isprintable() and len(key) <= MAX_NAME


def _to_array(value: Any, read_storage: Callable[[str], bytes]) -> np.ndarray | Unknown:
    if isinstance(value, np.ndarray | Unknown):
        return value
    if not isinstance(value, Tensor):
        return Unknown(type(value).__name__)
    (_, dtype), offset, shape, strides = value
    data = read_storage(value.storage.key)
    # NumPy doesn't look at an empty storage's bounds, and its own sum may overflow.
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if 0 not in shape and (min(offset, *strides, 0) < 0 or last >= len(data) // dtype.itemsize):
        raise ValueError("a tensor goes beyond its storage")
    steps = [step * dtype.itemsize for step in strides]
    return np.ndarray(shape, dtype, data, offset * dtype.itemsize, steps)


def _printable(text: str) -> str:
    return "".join(filter(str.isprintable, text))[:MAX_NAME]


def _describe(content: Any) -> str:
    """Name what a file holds instead of state dicts."""
    if isinstance(content, dict):
        return f"the keys {', '.join(itertools.islice(filter(_is_name, content), 10)) or 'of none'}"
    return content.name if isinstance(content, Unknown) else f"a {type(content).__name__}"


def _make_pickle(arrays: Mapping[str, np.ndarray], key: str) -> bytes:
    """Pickle what PyTorch calls to rebuild a dictionary of tensors in a dictionary."""
    storages = {dtype: name.replace(".", "\n") for name, dtype in DTYPES.items()}

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    def numbers(*values: int) -> bytes:
        return b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values)

    entries = b""
    for i, (name, array) in enumerate(arrays.items()):
        storage = text("storage") + f"c{storages[array.dtype]}\n".encode()
        storage += text(str(i)) + text("cpu") + numbers(array.size)
        strides = [step // array.itemsize for step in array.strides]
        entries += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n"
        entries += b"((" + storage + b"tQ" + numbers(0)
        entries += b"(" + numbers(*array.shape) + b"t(" + numbers(*strides) + b"t"
        entries += b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + text(key) + b"}(" + entries + b"us."
