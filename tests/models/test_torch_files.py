"""Tests of the reader of .pth files: against files that PyTorch wrote, and against bad ones."""

import builtins
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax.models.torch_files import LEGACY_MAGIC, LEGACY_PROTOCOL, read_torch_file

GOLDEN = Path(__file__).parents[1] / "golden" / "towers"
LAYOUTS = ("torch_zip.pth", "torch_legacy.pth")


@dataclass
class Name:
    """Pickles as the bare name of something in another module."""

    module: str
    name: str


@dataclass
class Call:
    """Pickles as a call of something in another module."""

    module: str
    name: str
    arguments: tuple[Any, ...] = ()


@dataclass
class Storage:
    """Pickles as a reference to a storage of the file."""

    key: Any
    length: int
    kind: str = "FloatStorage"
    module: str = "torch"


class ForgingPickler(pickle._Pickler):
    """Writes names and calls of modules that need not exist, as an attacker would.

    The Python implementation, because it can be taught to save a name without importing it.
    """

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, Storage):
            return None
        return ("storage", Name(value.module, value.kind), value.key, "cpu", value.length)

    def save(self, value: Any, save_persistent_id: bool = True) -> None:
        if isinstance(value, Name):
            self.write(f"c{value.module}\n{value.name}\n".encode())
        elif isinstance(value, Call):
            self.save(Name(value.module, value.name))
            self.save(value.arguments)
            self.write(pickle.REDUCE)
        elif isinstance(value, Object):
            self.save(Name(value.module, value.name))
            self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
            self.save(value.state)
            self.write(pickle.BUILD)
        else:
            super().save(value, save_persistent_id)


def forged_pickle(value: Any) -> bytes:
    stream = io.BytesIO()
    ForgingPickler(stream, protocol=2).dump(value)
    return stream.getvalue()


def tensor(storage: Any, shape: tuple[Any, ...], strides: tuple[Any, ...], offset: Any = 0) -> Call:
    arguments = (storage, offset, shape, strides, False, OrderedDict())
    return Call("torch._utils", "_rebuild_tensor_v2", arguments)


def write_zip(
    path: Path, value: Any, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", forged_pickle(value))
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
    return path


def write_legacy(path: Path, value: Any, storages: dict[str, bytes], item_size: int = 4) -> Path:
    information = {"little_endian": True}
    parts = [pickle.dumps(part, 2) for part in (LEGACY_MAGIC, LEGACY_PROTOCOL, information)]
    parts += [forged_pickle(value), pickle.dumps(list(storages), 2)]
    for content in storages.values():
        parts += [struct.pack("<q", len(content) // item_size), content]
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_are_those_that_torch_saved(layout: str):
    contents = read_torch_file(GOLDEN / layout)
    nested = contents["nested"]
    found = contents | {"list_0": nested["list"][0], "tuple_0": nested["tuple"][0]}
    expected = np.load(GOLDEN / "torch.npz")
    arrays = {name for name, value in found.items() if isinstance(value, np.ndarray)}
    assert arrays == set(expected.files)
    for name in expected.files:
        value = found[name]
        if name == "bfloat16":
            assert value.dtype == ml_dtypes.bfloat16
            value = value.astype(np.float32)
        assert (value.dtype, value.shape) == (expected[name].dtype, expected[name].shape), name
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_containers_keep_their_kind_and_plain_values(layout: str):
    contents = read_torch_file(GOLDEN / layout)
    assert type(contents) is OrderedDict
    assert next(iter(contents)) == "float32"
    nested = contents["nested"]
    assert type(nested) is dict and type(nested["list"]) is list and type(nested["tuple"]) is tuple
    assert nested["list"][1:] == ["text", 5, None] and nested["tuple"][1] == 0.25


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_of_one_storage_are_independent_contiguous_copies(layout: str):
    contents = read_torch_file(GOLDEN / layout)
    assert all(
        value.flags.c_contiguous and value.flags.writeable
        for value in contents.values()
        if isinstance(value, np.ndarray)
    )
    contents["float32"][2] = -1
    np.testing.assert_array_equal(contents["shared_row"], np.arange(12, 18))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_view_inside_its_storage_is_what_numpy_strides_give(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=3)))
    strides = tuple(data.draw(st.integers(1, 5)) for _ in shape)
    offset = data.draw(st.integers(0, 6))
    values = np.arange(80, dtype=np.int64)
    index = offset + sum(
        axis * stride for axis, stride in zip(np.indices(shape), strides, strict=True)
    )
    view = tensor(Storage("0", 80, "LongStorage"), shape, strides, offset)
    folder = tmp_path_factory.mktemp("views")
    for path in (
        write_zip(folder / "zip.pth", view, {"0": values.tobytes()}),
        write_legacy(folder / "legacy.pth", view, {"0": values.tobytes()}, item_size=8),
    ):
        np.testing.assert_array_equal(read_torch_file(path), values[index])


@dataclass
class Object:
    """Pickles as an instance of a class, made without a call and given a state."""

    module: str
    name: str
    state: Any


FORBIDDEN = [
    ("os.system", Call("os", "system", ("exit 1",))),
    ("posix.system", Call("posix", "system", ("exit 1",))),
    ("builtins.eval", Call("builtins", "eval", ("1 / 0",))),
    ("__builtin__.getattr", Name("__builtin__", "getattr")),
    ("numpy.load", Call("numpy", "load", ("weights.npy",))),
    ("torch.storage._load_from_bytes", Call("torch.storage", "_load_from_bytes", (b"",))),
    ("torch.load", {"weights": [Call("torch", "load", ("x.pth",))]}),
    ("subprocess.run", tensor(Call("subprocess", "run", ("true",)), (1,), (1,))),
    ("os.system", OrderedDict(a=tensor(Storage("0", 1), (1,), (1,)), b=Name("os", "system"))),
    ("models.Net", Call("models", "Net")),
    ("models.Net", Object("models", "Net", {"weight": 1})),
    ("os.system", Object("__torch__", "Net", {"a": [Call("os", "system", ("exit 1",))]})),
    ("os.system", Call("torch.jit._pickle", "build_intlist", (Name("os", "system"),))),
    ("torchx.Net", Object("torchx", "Net", {})),
]


@pytest.mark.parametrize(("name", "content"), FORBIDDEN)
@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_anything_but_tensors_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any, name: str, content: Any
):
    def fail(*arguments: Any) -> None:
        raise AssertionError(f"the file's code ran: {arguments}")

    monkeypatch.setattr(os, "system", fail)
    monkeypatch.setattr(builtins, "eval", fail)
    path = write(tmp_path / "weights.pth", content, {"0": bytes(4)})
    with pytest.raises(ValueError, match=f"weights.pth contains '{name}', which is not a tensor"):
        read_torch_file(path)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize(
    ("view", "message"),
    [
        (tensor(Storage("0", 6), (7,), (1,)), "does not fit its storage of 6 elements"),
        (tensor(Storage("0", 6), (2, 3), (4, 1)), "does not fit its storage of 6 elements"),
        (tensor(Storage("0", 6), (1,), (1,), 6), "does not fit its storage of 6 elements"),
        (tensor(Storage("0", 6), (10**12,), (0,)), "does not fit its storage of 6 elements"),
        (tensor(Storage("0", 6), (2,), (-1,), 3), "offset, shape or strides make no sense"),
        (tensor(Storage("0", 6), (-2,), (1,)), "offset, shape or strides make no sense"),
        (tensor(Storage("0", 6), (2,), (1,), -1), "offset, shape or strides make no sense"),
        (tensor(Storage("0", 6), ("2",), (1,)), "offset, shape or strides make no sense"),
        (tensor("0", (2,), (1,)), "offset, shape or strides make no sense"),
        (tensor(Storage("0", 6), (2, 2), (1,)), "is damaged"),
        (tensor(Storage("0", 7), (1,), (1,)), "storage '0' should have 28 bytes, 24 bytes found"),
        (
            tensor(Storage("1", 6), (1,), (1,)),
            "'1' should have 24 bytes, nothing|'0' is no tensor's",
        ),
        (Storage("0", 6), "contains a bare storage"),
        (tensor(Storage("0", -6), (1,), (1,)), "a storage has key '0' and length -6"),
    ],
)
def test_views_that_lie_are_refused(tmp_path: Path, write: Any, view: Any, message: str):
    path = write(tmp_path / "weights.pth", {"w": view}, {"0": bytes(24)})
    with pytest.raises(ValueError, match=message):
        read_torch_file(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_truncated_files_are_refused_in_one_line(tmp_path: Path, layout: str):
    content = (GOLDEN / layout).read_bytes()
    for length in [*range(0, 200, 7), *range(200, len(content), 97), len(content) - 1]:
        path = tmp_path / "weights.pth"
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"weights\.pth") as refusal:
            read_torch_file(path)
        assert len(str(refusal.value).splitlines()) == 1


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_bytes_give_a_value_or_one_kind_of_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    content = bytearray((GOLDEN / "torch_legacy.pth").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "weights.pth"
    path.write_bytes(content)
    try:
        read_torch_file(path)
    except ValueError as error:
        assert "weights.pth" in str(error)


def test_legacy_storage_that_claims_too_much_is_refused_before_reading(tmp_path: Path):
    view = tensor(Storage("0", 2**40), (1,), (1,))
    path = write_legacy(tmp_path / "weights.pth", view, {"0": bytes(8)})
    content = path.read_bytes()
    path.write_bytes(content[:-16] + struct.pack("<q", 2**40) + bytes(8))
    with pytest.raises(ValueError, match=f"a storage claims {2**42} bytes, 8 are left"):
        read_torch_file(path)


def test_compressed_archives_are_refused(tmp_path: Path):
    view = tensor(Storage("0", 2), (2,), (1,))
    path = write_zip(tmp_path / "w.pth", view, {"0": bytes(8)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="has compressed entries"):
        read_torch_file(path)


def test_foreign_archives_and_byte_orders_are_refused(tmp_path: Path):
    foreign = tmp_path / "foreign.pth"
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"foreign.pth is a zip archive without data.pkl"):
        read_torch_file(foreign)
    path = write_zip(tmp_path / "big.pth", {}, {})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", "big")
    with pytest.raises(ValueError, match=r"big.pth was written on a big-endian machine"):
        read_torch_file(path)


def test_foreign_pickles_and_missing_files_are_refused(tmp_path: Path):
    path = tmp_path / "plain.pth"
    path.write_bytes(pickle.dumps({"weights": [1.0]}))
    with pytest.raises(ValueError, match=r"plain\.pth does not begin like a file of torch\.save"):
        read_torch_file(path)
    with pytest.raises(FileNotFoundError, match=r"absent\.pth is no file"):
        read_torch_file(tmp_path / "absent.pth")


def test_torchscript_archives_are_read_as_names_with_tensors(tmp_path: Path):
    row = tensor(Storage("0", 6), (3,), (1,), 3)
    layer = Object("__torch__.torch.nn.modules.linear.___torch_mangle_1", "Linear", {"weight": row})
    sizes = Call("torch.jit._pickle", "build_intlist", ([1, 2],))
    state = {"training": False, "sizes": sizes, "scale": row, "blocks": Object(
        "__torch__", "ModuleList", {"0": layer, "1": layer})}  # fmt: skip
    path = tmp_path / "script.pt"
    write_zip(path, Object("__torch__", "Net", state), {"0": np.arange(6, dtype="<f4").tobytes()})
    with zipfile.ZipFile(path, "a") as archive:  # As torch does; never read.
        code = "import os; os.system('exit 1')"
        archive.writestr("archive/code/__torch__.py", code, zipfile.ZIP_DEFLATED)
        archive.writestr("archive/constants.pkl", b"not even a pickle")
    arrays = read_torch_file(path)
    assert list(arrays) == ["scale", "blocks.0.weight", "blocks.1.weight"]
    for array in arrays.values():
        np.testing.assert_array_equal(array, [3, 4, 5])


@pytest.mark.parametrize("state", [[("a", 1)], (None, {"__class__": 1}), "text"])
def test_objects_with_a_strange_state_are_refused(tmp_path: Path, state: Any):
    path = write_zip(tmp_path / "w.pth", Object("__torch__", "Net", state), {})
    with pytest.raises(ValueError, match="the attributes of an object are no dictionary"):
        read_torch_file(path)


def test_a_class_of_the_reader_cannot_be_changed(tmp_path: Path):
    for name in (Name("__torch__", "Net"), Name("argparse", "Namespace")):
        stream = io.BytesIO()
        pickler = ForgingPickler(stream, protocol=2)
        pickler.write(pickle.PROTO + b"\x02")
        pickler.save(name)
        pickler.save((None, {"update": None, "__setstate__": None}))
        pickler.write(pickle.BUILD + pickle.STOP)
        with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
            archive.writestr("archive/data.pkl", stream.getvalue())
        with pytest.raises(ValueError, match=r"w\.pth is damaged"):
            read_torch_file(tmp_path / "w.pth")
    state = {"a": tensor(Storage("0", 1), (1,), (1,))}
    write_zip(tmp_path / "w.pth", Object("__torch__", "Net", state), {"0": bytes(4)})
    assert list(read_torch_file(tmp_path / "w.pth")) == ["a"]


def test_arguments_of_a_training_script_are_plain_values(tmp_path: Path):
    value = {"args": Object("argparse", "Namespace", {"lr": 0.1}), "model": {}}
    assert read_torch_file(write_zip(tmp_path / "w.pth", value, {})) == {
        "args": {"lr": 0.1},
        "model": {},
    }


def test_only_what_is_selected_is_read(tmp_path: Path):
    missing = tensor(Storage("9", 4), (4,), (1,))  # Its storage is not in the file.
    weight = tensor(Storage("0", 2), (2,), (1,))
    path = write_zip(tmp_path / "w.pth", {"model": {"w": weight}, "rest": missing}, {"0": bytes(8)})
    assert list(read_torch_file(path, select=lambda content: content["model"])) == ["w"]
    with pytest.raises(ValueError, match="storage '9' should have 16 bytes, nothing found"):
        read_torch_file(path)


def test_names_that_leave_the_archive_reach_nothing(tmp_path: Path):
    (tmp_path / "inside").mkdir()
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(8))
    for key in ("../../../secret", str(secret)):
        view = tensor(Storage(key, 2), (2,), (1,))
        path = write_zip(tmp_path / "inside" / "w.pth", {"w": view}, {})
        with pytest.raises(ValueError, match="should have 8 bytes, nothing found"):
            read_torch_file(path)
    view = tensor(Storage("../../evil", 2), (2,), (1,))
    path = write_zip(tmp_path / "inside" / "w.pth", {"w": view}, {"../../evil": bytes(8)})
    read_torch_file(path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["inside", "secret", "w.pth"]


def test_sizes_that_claim_too_much_are_refused(tmp_path: Path):
    view = tensor(Storage("0", 2**40), (2**40,), (1,))
    path = write_zip(tmp_path / "w.pth", {"w": view}, {"0": bytes(8)})
    with pytest.raises(ValueError, match=f"should have {2**42} bytes, 8 bytes found"):
        read_torch_file(path)
    views = [tensor(Storage("0", 2**18), (2**18,), (1,)) for _ in range(20)]
    path = write_zip(tmp_path / "w.pth", views, {"0": bytes(2**20)})
    with pytest.raises(ValueError, match="its tensors claim many times its own size"):
        read_torch_file(path)


def test_containers_named_again_and_again_are_made_once(tmp_path: Path):
    nested: list[Any] = [1.0]
    for _ in range(60):  # 2 ** 60 numbers, were each mention a copy.
        nested = [nested, nested]
    assert len(read_torch_file(write_zip(tmp_path / "w.pth", nested, {}))) == 2
    nested = []
    nested.append(nested)
    with pytest.raises(ValueError, match="is damaged"):
        read_torch_file(write_zip(tmp_path / "w.pth", nested, {}))


@pytest.mark.oracle
def test_reads_what_live_torchscript_writes(tmp_path: Path):
    torch = pytest.importorskip("torch")
    layers = (torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Sequential())
    network = torch.nn.Sequential(*layers, torch.nn.Linear(2, 2)).eval().half()
    torch.jit.script(network).save(tmp_path / "w.pt")
    arrays = read_torch_file(tmp_path / "w.pt")
    assert arrays.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(arrays[name], value.numpy())


@pytest.mark.oracle
@pytest.mark.parametrize("zipped", [True, False])
def test_reads_what_live_torch_writes(tmp_path: Path, zipped: bool):
    torch = pytest.importorskip("torch")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    path = tmp_path / "w.pth"
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=zipped)
    arrays = read_torch_file(path)
    assert list(arrays) == list(network.state_dict())
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(arrays[name], value.numpy())


def typed(storage: Storage, dtype: str, shape: tuple[int, ...], bits: dict | None = None) -> Call:
    """A tensor of a newer type, on a storage of bytes."""
    arguments = (storage, 0, shape, (1,), False, OrderedDict(), Name("torch", dtype), bits)
    return Call("torch._utils", "_rebuild_tensor_v3", arguments)


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"])
def test_newer_types_lie_in_bytes(tmp_path: Path, dtype: str) -> None:
    numpy_type = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    wanted = np.arange(6).astype(numpy_type)
    storage = Storage("0", wanted.nbytes, "UntypedStorage", "torch.storage")
    path = write_zip(
        tmp_path / "w.pth", {"w": typed(storage, dtype, (6,))}, {"0": wanted.tobytes()}
    )
    found = read_torch_file(path)["w"]
    assert found.dtype == numpy_type
    np.testing.assert_array_equal(found.astype(np.float64), wanted.astype(np.float64))


def test_what_torch_lets_lie_beside_weights_is_plain(tmp_path: Path) -> None:
    content = {
        "counter": Call("collections", "Counter", ({"a": 2},)),
        "set": Call("__builtin__", "set", ([1, 2],)),
        "size": Call("torch", "Size", ([3, 4],)),
        "device": Call("torch", "device", ("cuda", 1)),
        "dtype": Name("torch", "float16"),
        "bytes": Call("_codecs", "encode", ("\xff", "latin1")),
    }
    found = read_torch_file(write_zip(tmp_path / "w.pth", content, {}))
    assert found == {
        "counter": {"a": 2},
        "set": {1, 2},
        "size": (3, 4),
        "device": "cuda:1",
        "dtype": np.dtype(np.float16),
        "bytes": b"\xff",
    }


def test_buffers_and_views_with_marks_and_strides_of_zero(tmp_path: Path) -> None:
    numbers = np.array([1 + 2j, 3 - 4j], np.complex64)
    storage = Storage("0", 2, "ComplexFloatStorage")
    marked = {
        mark: Call(
            "torch._utils",
            "_rebuild_tensor_v2",
            (storage, 0, (2,), (1,), False, OrderedDict(), {mark: True}),
        )
        for mark in ("conj", "neg")
    }
    arguments = (storage, 0, (2,), (1,), False, OrderedDict())
    kind, rebuild = Name("torch", "Tensor"), Name("torch._utils", "_rebuild_tensor_v2")
    buffer = Call("torch._tensor", "_rebuild_from_type_v2", (rebuild, kind, arguments, {}))
    content = {**marked, "buffer": buffer, "spread": tensor(storage, (3, 2), (0, 1))}
    found = read_torch_file(write_zip(tmp_path / "w.pth", content, {"0": numbers.tobytes()}))
    np.testing.assert_array_equal(found["conj"], numbers.conj())
    np.testing.assert_array_equal(found["neg"], -numbers)
    np.testing.assert_array_equal(found["buffer"], numbers)
    np.testing.assert_array_equal(found["spread"], np.broadcast_to(numbers, (3, 2)))
