"""Reads the tensors of a PyTorch .pth file without PyTorch, and without running what is in it.

A .pth file is a pickle, and a pickle may call any function. This reader admits the few names that
make up tensors and plain containers, maps them to functions of its own, and refuses every other
name. Both layouts of `torch.save` are read:

* since PyTorch 1.6 a zip archive: `NAME/data.pkl`, and one file of raw bytes per storage;
* before, five pickles in a row (magic number, protocol version, system information, the object,
  the keys of its storages), then per storage its length and its raw bytes.

A storage is a flat array; a tensor is a view on one, given by offset, shape and strides. These
numbers come from the file, so each view is checked to lie inside its storage.
"""

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

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


def read_torch_file(path: str | Path) -> Any:
    """Return what a .pth file holds, its tensors as NumPy arrays.

    Args:
        path: a file written by `torch.save`, in the zip layout or in the one before PyTorch 1.6.

    Returns:
        The saved object: for a state dict, an OrderedDict from name to array. Arrays are copies,
        contiguous and writable; bfloat16 is `ml_dtypes.bfloat16`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is in neither layout, is damaged, or contains something that is neither
            a tensor nor a plain container.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; what torch.save has written is needed")
    with path.open("rb") as stream:
        is_zip = stream.read(len(ZIP_MAGIC)) == ZIP_MAGIC
        stream.seek(0)
        try:
            skeleton, storages = _read_zip(stream) if is_zip else _read_legacy(stream)
            return _fill(skeleton, storages)
        except _RefusedError as refusal:
            raise ValueError(f"{path} {refusal}") from None
        except Exception as error:
            # A damaged pickle can fail in any way at all; the user needs one line, not which way.
            reason = str(error) or type(error).__name__
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


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles plain containers with a `_View` in place of every tensor; refuses all else."""

    def find_class(self, module: str, name: str) -> Callable[..., Any] | str:
        admitted: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self._rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): self._rebuild_parameter,
        }
        if module == "torch" and name in STORAGE_DTYPES:
            return name
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

    def _rebuild_parameter(self, data: Any, *_flags: Any) -> Any:
        return data


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _read_zip(stream: IO[bytes]) -> tuple[Any, Mapping[str, bytes]]:
    """Return the object with views for tensors, and the bytes of the storages by key."""
    with zipfile.ZipFile(stream) as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        # torch.save never compresses; a compressed entry could blow up to any size.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise _RefusedError("has compressed entries, which torch.save does not write")
        if "data.pkl" not in entries:
            raise _RefusedError("is a zip archive without data.pkl; torch.save did not write it")
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise _RefusedError("was written on a big-endian machine; save it on a usual one")
        skeleton = _TensorUnpickler(io.BytesIO(archive.read(entries["data.pkl"]))).load()
        storages = {
            name.removeprefix("data/"): archive.read(entry)
            for name, entry in entries.items()
            if name.startswith("data/")
        }
    return skeleton, storages


def _read_legacy(stream: IO[bytes]) -> tuple[Any, Mapping[str, bytes]]:
    """Return the object with views for tensors, and the bytes of the storages by key."""
    if _TensorUnpickler(stream).load() != LEGACY_MAGIC:
        raise _RefusedError("does not begin like a file of torch.save")
    if _TensorUnpickler(stream).load() != LEGACY_PROTOCOL:
        raise _RefusedError(f"is not of the protocol version {LEGACY_PROTOCOL}")
    if not _TensorUnpickler(stream).load()["little_endian"]:
        raise _RefusedError("was written on a big-endian machine; save it on a usual one")
    unpickler = _LegacyUnpickler(stream)
    skeleton = unpickler.load()
    storages = {}
    for key in _TensorUnpickler(stream).load():
        if key not in unpickler.item_sizes:
            raise _RefusedError(f"is damaged: storage {key!r} is no tensor's")
        storages[key] = _read_legacy_storage(stream, unpickler.item_sizes[key])
    return skeleton, storages


class _LegacyUnpickler(_TensorUnpickler):
    """Remembers the element size of each storage: the old layout stores lengths in elements."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream)
        self.item_sizes: dict[str, int] = {}

    def persistent_load(self, pid: Any) -> _Storage:
        storage = super().persistent_load(pid)
        self.item_sizes[storage.key] = storage.dtype.itemsize
        return storage


def _read_legacy_storage(stream: IO[bytes], item_size: int) -> bytes:
    (length,) = struct.unpack("<q", stream.read(8))
    position = stream.tell()
    available = stream.seek(0, io.SEEK_END) - position
    stream.seek(position)
    # Asked before reading: a lying length must not reserve the memory it claims.
    if not 0 <= length * item_size <= available:
        raise _RefusedError(
            f"is damaged: a storage claims {length * item_size} bytes, {available} are left"
        )
    return stream.read(length * item_size)


def _fill(value: Any, storages: Mapping[str, bytes]) -> Any:
    """Replace every view inside plain containers by an array of its own."""
    if isinstance(value, _View):
        return _to_array(value, storages)
    if isinstance(value, _Storage):
        raise _RefusedError("contains a bare storage; save tensors instead")
    if isinstance(value, dict):
        return type(value)((key, _fill(item, storages)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value)(_fill(item, storages) for item in value)
    return value


def _to_array(view: _View, storages: Mapping[str, bytes]) -> np.ndarray:
    key, dtype, length = view.storage
    if key not in storages or len(storages[key]) != length * dtype.itemsize:
        found = f"{len(storages[key])} bytes" if key in storages else "nothing"
        raise _RefusedError(
            f"is damaged: storage {key!r} should have {length * dtype.itemsize} bytes, "
            f"{found} found"
        )
    size = math.prod(view.shape)
    if size == 0:
        return np.zeros(view.shape, dtype)
    steps = zip(view.shape, view.strides, strict=True)
    last = view.offset + sum((extent - 1) * stride for extent, stride in steps)
    # More elements than the storage has would be a stride of zero: a few bytes claiming terabytes.
    if last >= length or size > length:
        raise _RefusedError(
            f"is damaged: a tensor of shape {view.shape}, strides {view.strides}, offset "
            f"{view.offset} does not fit its storage of {length} elements"
        )
    values = np.frombuffer(storages[key], dtype)[view.offset :]
    byte_strides = [stride * dtype.itemsize for stride in view.strides]
    strided = np.lib.stride_tricks.as_strided(values, view.shape, byte_strides, writeable=False)
    return np.array(strided, order="C")
