"""Reads the tensors of a PyTorch .pth file without PyTorch, and without running what is in it.

A .pth file is a pickle, and a pickle may call any function. This reader admits the few names that
make up tensors and plain containers, maps them to functions of its own, and refuses every other
name. Three layouts are read:

* of `torch.save` since PyTorch 1.6, a zip archive: `NAME/data.pkl`, and one file of raw bytes per
  storage;
* of `torch.save` before, five pickles in a row (magic number, protocol version, system
  information, the object, the keys of its storages), then per storage its length and its raw bytes;
* of `torch.jit.save` (TorchScript), the first with the model's code beside it and modules in its
  pickle. The code is not read; modules are taken for plain containers of what they hold.

A storage is a flat array; a tensor is a view on one, given by offset, shape and strides. These
numbers come from the file, so each view is checked to lie inside its storage. Storages are read one
at a time, so that reading takes little more memory than the arrays themselves.
"""

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

# Arrays may share their bytes (tied weights), but not so often that a small file fills the memory.
MAX_EXPANSION = 8

STORAGE_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


def read_torch_file(path: str | Path, select: Callable[[Any], Any] | None = None) -> Any:
    """Return what a .pth file holds, its tensors as NumPy arrays.

    Args:
        path: a file written by `torch.save`, in the zip layout or in the one before PyTorch 1.6, or
            by `torch.jit.save`.
        select: takes the wanted part out of the saved containers; the other parts' tensors, such as
            an optimizer's, are not read. None takes everything.

    Returns:
        The saved object: for a state dict, an OrderedDict from name to array; for a TorchScript
        model a dict from name to array too. Arrays are copies, contiguous and writable; bfloat16
        is `ml_dtypes.bfloat16`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is in none of the layouts, is damaged, or contains something that is
            neither a tensor nor a plain container.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; what torch.save has written is needed")
    with path.open("rb") as stream:
        is_zip = stream.read(len(ZIP_MAGIC)) == ZIP_MAGIC
        stream.seek(0)
        try:
            skeleton, storages = _read_zip(stream) if is_zip else _read_legacy(stream)
            if isinstance(skeleton, _Attributes):
                skeleton = dict(_named_tensors(skeleton, ""))
            wanted = select(skeleton) if select else skeleton
            return _Filler(storages, MAX_EXPANSION * path.stat().st_size).fill(wanted)
        except _RefusedError as refusal:
            raise ValueError(f"{path} {refusal}") from None
        except Exception as error:
            # A damaged pickle can fail in any way at all; the user needs one line, not which way.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"{path} is damaged or was not written by torch.save: {reason}"
            ) from error


class _RefusedError(Exception):
    """What is wrong with a file, as a sentence whose subject is the file."""


# Named tuples because a pickle cannot change them once they are made.
class _Storage(NamedTuple):
    """A flat array of the file."""

    key: str
    dtype: np.dtype
    length: int


class _View(NamedTuple):
    """A tensor: where its elements lie in a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Storages(NamedTuple):
    """The raw bytes of the storages, read when they are asked for."""

    sizes: Mapping[str, int]
    read: Callable[[str], bytes]


class _Attributes(dict):
    """What an object held by name, in place of the object: no class of the file is ever made."""

    def __setstate__(self, state: Any) -> None:
        """Take the attributes; without this method the unpickler would set them by itself."""
        if not isinstance(state, dict):
            raise _RefusedError("is damaged: the attributes of an object are no dictionary")
        self.update(state)


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles plain containers with a `_View` in place of every tensor; refuses all else."""

    def find_class(self, module: str, name: str) -> Callable[..., Any] | str:
        admitted: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self._rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): _first_argument,
            # Command-line arguments, which training scripts like to save along.
            ("argparse", "Namespace"): _Attributes,
        }
        if module == "torch" and name in STORAGE_DTYPES:
            return name
        if module.partition(".")[0] == "__torch__":  # A module of a TorchScript model.
            return _Attributes
        if module == "torch.jit._pickle":  # Lists with a type: build_intlist, restore_type_tag...
            return _first_argument
        if (module, name) not in admitted:
            raise _RefusedError(
                f"contains '{module}.{name}', which is not a tensor or a plain container; "
                "save the weights alone, with torch.save(model.state_dict(), path)"
            )
        return admitted[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _location, length, *view = pid
        if kind != "storage" or storage_type not in STORAGE_DTYPES or any(view):
            raise _RefusedError(f"contains an unknown kind of storage: {kind!r}, {storage_type!r}")
        if not isinstance(key, str) or not _is_size(length):
            raise _RefusedError(f"is damaged: a storage has key {key!r} and length {length!r}")
        return _Storage(key, STORAGE_DTYPES[storage_type], length)

    def _rebuild_tensor(
        self, storage: Any, offset: Any, shape: Any, strides: Any, *_flags: Any
    ) -> _View:
        shape, strides = tuple(shape), tuple(strides)
        sizes = (offset, *shape, *strides)
        if not isinstance(storage, _Storage) or not all(map(_is_size, sizes)):
            raise _RefusedError("is damaged: a tensor's offset, shape or strides make no sense")
        return _View(storage, offset, shape, strides)


def _first_argument(value: Any, *_others: Any) -> Any:
    return value


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _named_tensors(module: _Attributes, prefix: str) -> Iterator[tuple[str, _View]]:
    """Yield the tensors of a TorchScript module, named as in a state dict."""
    for name, value in module.items():
        if isinstance(value, _View):
            yield f"{prefix}{name}", value
        elif isinstance(value, _Attributes):
            yield from _named_tensors(value, f"{prefix}{name}.")


def _read_zip(stream: IO[bytes]) -> tuple[Any, _Storages]:
    """Return the object with views for tensors, and its storages."""
    archive = zipfile.ZipFile(stream)
    entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
    wanted = {name: e for name, e in entries.items() if name.startswith(("data/", "data.pkl"))}
    # Neither is ever compressed by torch; a compressed entry could blow up to any size.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in wanted.values()):
        raise _RefusedError("has compressed entries, which torch.save does not write")
    if "data.pkl" not in entries:
        raise _RefusedError("is a zip archive without data.pkl; torch.save did not write it")
    if "byteorder" in entries and archive.open(entries["byteorder"]).read(9) != b"little":
        raise _RefusedError("was written on a big-endian machine; save it on a usual one")
    skeleton = _TensorUnpickler(io.BytesIO(archive.read(entries["data.pkl"]))).load()
    sizes = {name.removeprefix("data/"): entry.file_size for name, entry in wanted.items()}
    return skeleton, _Storages(sizes, lambda key: archive.read(entries[f"data/{key}"]))


def _read_legacy(stream: IO[bytes]) -> tuple[Any, _Storages]:
    """Return the object with views for tensors, and its storages."""
    if _TensorUnpickler(stream).load() != LEGACY_MAGIC:
        raise _RefusedError("does not begin like a file of torch.save")
    if _TensorUnpickler(stream).load() != LEGACY_PROTOCOL:
        raise _RefusedError(f"is not of the protocol version {LEGACY_PROTOCOL}")
    if not _TensorUnpickler(stream).load()["little_endian"]:
        raise _RefusedError("was written on a big-endian machine; save it on a usual one")
    unpickler = _LegacyUnpickler(stream)
    skeleton = unpickler.load()
    places: dict[str, tuple[int, int]] = {}
    for key in _TensorUnpickler(stream).load():
        if key not in unpickler.item_sizes:
            raise _RefusedError(f"is damaged: storage {key!r} is no tensor's")
        places[key] = _skip_legacy_storage(stream, unpickler.item_sizes[key])

    def read(key: str) -> bytes:
        position, size = places[key]
        stream.seek(position)
        return stream.read(size)

    return skeleton, _Storages({key: size for key, (_, size) in places.items()}, read)


class _LegacyUnpickler(_TensorUnpickler):
    """Remembers the element size of each storage: the old layout stores lengths in elements."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream)
        self.item_sizes: dict[str, int] = {}

    def persistent_load(self, pid: Any) -> _Storage:
        storage = super().persistent_load(pid)
        self.item_sizes[storage.key] = storage.dtype.itemsize
        return storage


def _skip_legacy_storage(stream: IO[bytes], item_size: int) -> tuple[int, int]:
    """Return where a storage's bytes begin and how many there are, and go behind them."""
    (length,) = struct.unpack("<q", stream.read(8))
    position = stream.tell()
    available = stream.seek(0, io.SEEK_END) - position
    # Asked before reading: a lying length must not reserve the memory it claims.
    if not 0 <= length * item_size <= available:
        raise _RefusedError(
            f"is damaged: a storage claims {length * item_size} bytes, {available} are left"
        )
    stream.seek(position + length * item_size)
    return position, length * item_size


class _Filler:
    """Replaces every view inside plain containers by an array of its own."""

    def __init__(self, storages: _Storages, most_bytes: int) -> None:
        self.storages = storages
        self.bytes_left = most_bytes
        self.latest: tuple[str, bytes] | None = None  # Neighbours often share a storage.
        # By identity, kept alive beside: a pickle can name one container any number of times.
        self.filled: dict[int, tuple[Any, Any]] = {}

    def fill(self, value: Any) -> Any:
        if id(value) not in self.filled:
            self.filled[id(value)] = value, self._fill(value)
        return self.filled[id(value)][1]

    def _fill(self, value: Any) -> Any:
        if isinstance(value, _View):
            return self._to_array(value)
        if isinstance(value, _Storage):
            raise _RefusedError("contains a bare storage; save tensors instead")
        if isinstance(value, dict):
            return type(value)((key, self.fill(item)) for key, item in value.items())
        if isinstance(value, list | tuple):
            return type(value)(self.fill(item) for item in value)
        return value

    def _to_array(self, view: _View) -> np.ndarray:
        length, dtype = view.storage.length, view.storage.dtype
        size = _checked_size(view, self.storages.sizes.get(view.storage.key))
        self.bytes_left -= size * dtype.itemsize
        if self.bytes_left < 0:
            raise _RefusedError("is damaged: its tensors claim many times its own size")
        if size == 0:
            return np.zeros(view.shape, dtype)
        values = np.frombuffer(self._bytes_of(view.storage.key), dtype, length)[view.offset :]
        byte_strides = [stride * dtype.itemsize for stride in view.strides]
        strided = np.lib.stride_tricks.as_strided(values, view.shape, byte_strides, writeable=False)
        return np.array(strided, order="C")

    def _bytes_of(self, key: str) -> bytes:
        if self.latest is None or self.latest[0] != key:
            self.latest = None  # The old one may go before the new one comes.
            self.latest = key, self.storages.read(key)
        return self.latest[1]


def _checked_size(view: _View, found_bytes: int | None) -> int:
    """Return how many elements a view has, after a check that they lie inside its storage."""
    key, dtype, length = view.storage
    if found_bytes != length * dtype.itemsize:
        found = "nothing" if found_bytes is None else f"{found_bytes} bytes"
        raise _RefusedError(
            f"is damaged: storage {key!r} should have {length * dtype.itemsize} bytes, "
            f"{found} found"
        )
    size = math.prod(view.shape)
    steps = zip(view.shape, view.strides, strict=True)
    last = view.offset + sum((extent - 1) * stride for extent, stride in steps)
    # More elements than the storage has would be a stride of zero: a few bytes claiming terabytes.
    if size and (last >= length or size > length):
        raise _RefusedError(
            f"is damaged: a tensor of shape {view.shape}, strides {view.strides}, offset "
            f"{view.offset} does not fit its storage of {length} elements"
        )
    return size
