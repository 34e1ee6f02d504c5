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
MAX_SPREAD = 2**26  # Bytes, which numbers may be spread out to by strides of zero.

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
    "ComplexFloatStorage": np.dtype(np.complex64),
    "ComplexDoubleStorage": np.dtype(np.complex128),
}
UNTYPED_STORAGE = "UntypedStorage"  # Of bytes; the tensor says what they are.
DTYPES = {
    **{name: np.dtype(name) for name in ("float16", "float32", "float64", "bool")},
    **{name: np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64")},
    **{name: np.dtype(name) for name in ("int8", "int16", "int32", "int64")},
    **{name: np.dtype(name) for name in ("complex64", "complex128")},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
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
        and the kinds of float8 are those of `ml_dtypes`. Of what may lie beside, a `torch.Size` is
        a tuple, a Counter a dict, a device a string and a type of numbers NumPy's.

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
    conjugate: bool = False  # What PyTorch leaves undone until the numbers are needed.
    negative: bool = False


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

    def find_class(self, module: str, name: str) -> Callable[..., Any] | str | np.dtype:
        admitted: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("collections", "Counter"): _plain_dict,
            ("builtins", "set"): _plain_set,
            ("__builtin__", "set"): _plain_set,  # As Python 2 called it, and its protocol does.
            ("__builtin__", "bytearray"): _plain_bytes,
            ("__builtin__", "complex"): _plain_complex,
            ("builtins", "bytearray"): _plain_bytes,
            ("builtins", "complex"): _plain_complex,
            ("_codecs", "encode"): _plain_bytes,
            ("torch", "Size"): _plain_tuple,
            ("torch", "device"): _device_name,
            ("torch", "Tensor"): _first_argument,
            ("torch.nn.parameter", "Parameter"): _first_argument,
            ("torch.nn.parameter", "Buffer"): _first_argument,
            ("torch._utils", "_rebuild_tensor"): self._rebuild_tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._rebuild_tensor,
            ("torch._utils", "_rebuild_tensor_v3"): self._rebuild_typed_tensor,
            ("torch._utils", "_rebuild_parameter"): _first_argument,
            ("torch._utils", "_rebuild_parameter_with_state"): _first_argument,
            ("torch._tensor", "_rebuild_from_type_v2"): self._rebuild_subclass,
            # Command-line arguments, which training scripts like to save along.
            ("argparse", "Namespace"): _Attributes,
        }
        if module == "torch" and name in STORAGE_DTYPES:
            return name
        if (module, name) == ("torch.storage", UNTYPED_STORAGE):
            return name
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
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
        known = {**STORAGE_DTYPES, UNTYPED_STORAGE: np.dtype(np.uint8)}
        # A name, not a type of numbers, which has no hash that may be asked for here.
        named = isinstance(storage_type, str) and storage_type in known
        if kind != "storage" or not named or any(view):
            raise _RefusedError(f"contains an unknown kind of storage: {kind!r}, {storage_type!r}")
        if not isinstance(key, str) or not _is_size(length):
            raise _RefusedError(f"is damaged: a storage has key {key!r} and length {length!r}")
        return _Storage(key, known[storage_type], length)

    def _rebuild_typed_tensor(
        self,
        storage: Any,
        offset: Any,
        shape: Any,
        strides: Any,
        gradient: Any,
        hooks: Any,
        dtype: Any,
        bits: Any = None,
    ) -> _View:
        """Return a view on bytes, whose offset and strides count numbers of the type."""
        if not isinstance(storage, _Storage) or not isinstance(dtype, np.dtype):
            raise _RefusedError("is damaged: a tensor has no storage or no type of numbers")
        size = storage.length * storage.dtype.itemsize
        typed = _Storage(storage.key, dtype, size // dtype.itemsize)
        return self._rebuild_tensor(typed, offset, shape, strides, gradient, hooks, bits)

    def _rebuild_subclass(self, rebuild: Any, kind: Any, arguments: Any, state: Any) -> _View:
        """Return the tensor that a buffer or another kind of tensor is."""
        if rebuild not in (self._rebuild_tensor, self._rebuild_typed_tensor):
            raise _RefusedError("contains a kind of tensor that cannot be read")
        return rebuild(*arguments)

    def _rebuild_tensor(
        self,
        storage: Any,
        offset: Any,
        shape: Any,
        strides: Any,
        gradient: Any = None,
        hooks: Any = None,
        bits: Any = None,
    ) -> _View:
        shape, strides = tuple(shape), tuple(strides)
        sizes = (offset, *shape, *strides)
        if not isinstance(storage, _Storage) or not all(map(_is_size, sizes)):
            raise _RefusedError("is damaged: a tensor's offset, shape or strides make no sense")
        bits = bits if isinstance(bits, dict) else {}
        if unknown := set(bits) - {"conj", "neg"}:
            raise _RefusedError(f"contains a tensor that is marked {sorted(map(str, unknown))}")
        marks = bool(bits.get("conj")), bool(bits.get("neg"))
        return _View(storage, offset, shape, strides, *marks)


def _first_argument(value: Any, *_others: Any) -> Any:
    return value


def _plain_dict(value: Any = ()) -> dict:
    return dict(value)


def _plain_set(value: Any = ()) -> set:
    return set(value)


def _plain_tuple(value: Any = ()) -> tuple:
    return tuple(value)


def _plain_complex(real: float, imaginary: float) -> complex:
    return complex(float(real), float(imaginary))


def _plain_bytes(value: Any = b"", encoding: Any = "latin1") -> bytes:
    """Return bytes, which old protocols write as text; a number would be a size to reserve."""
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if not isinstance(value, str) or encoding not in ("latin1", "latin-1", "utf-8"):
        raise _RefusedError("is damaged: some bytes are neither bytes nor text")
    return value.encode(encoding)


def _device_name(kind: Any, *index: Any) -> str:
    return ":".join(map(str, (kind, *index)))


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
        self.spread_left = MAX_SPREAD
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
        if isinstance(value, set) and any(isinstance(item, _View) for item in value):
            raise _RefusedError("contains a set of tensors")
        return value

    def _to_array(self, view: _View) -> np.ndarray:
        length, dtype = view.storage.length, view.storage.dtype
        size = _checked_size(view, self.storages.sizes.get(view.storage.key))
        self.bytes_left -= min(size, length) * dtype.itemsize
        self.spread_left -= max(size - length, 0) * dtype.itemsize
        if self.bytes_left < 0 or self.spread_left < 0:
            raise _RefusedError("is damaged: its tensors claim many times its own size")
        if size == 0:
            return np.zeros(view.shape, dtype)
        # NumPy has no strides for all of ml_dtypes' types, but for integers of their size.
        raw = np.dtype(f"u{dtype.itemsize}") if dtype.itemsize < 4 else dtype
        values = np.frombuffer(self._bytes_of(view.storage.key), raw, length)[view.offset :]
        byte_strides = [stride * dtype.itemsize for stride in view.strides]
        strided = np.lib.stride_tricks.as_strided(values, view.shape, byte_strides, writeable=False)
        array = np.array(strided, order="C").view(dtype)
        array = np.conjugate(array) if view.conjugate else array
        return np.negative(array) if view.negative else array

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
    # A stride of zero may spread a number out, but not a few bytes to terabytes.
    spread = size > length and size * dtype.itemsize > MAX_SPREAD
    if size and (last >= length or spread):
        raise _RefusedError(
            f"is damaged: a tensor of shape {view.shape}, strides {view.strides}, offset "
            f"{view.offset} does not fit its storage of {length} elements"
        )
    return size
