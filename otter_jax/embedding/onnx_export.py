"""Writes a model as ONNX (onnx.ai), for runtimes without JAX: otter-jax export --format=onnx.

The folder holds `image.onnx` and `text.onnx`, which give unit embeddings of batches of any size,
with the names and types of input that transformers' processors give; the tokenizer; and in
`otter_jax.json` what stands between the two and probabilities. The conversion is jax2onnx's.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx

from otter_jax import objectives
from otter_jax.embedding.encoder import Encoder
from otter_jax.models import blueprint, export
from otter_jax.models.dual_encoder import DualEncoder
from otter_jax.models.layers import portable_operations

OPSET = 21  # Of April 2024. What jax2onnx writes needs more than 19, whatever is asked for.
BATCH = "batch"
LARGEST_FILE = 2**31 - 2**20  # Bytes; protobuf, in which ONNX is written, ends at 2 GiB.
TOLERANCE = 1e-4  # Of unit embeddings, between onnxruntime and JAX.
DESCRIPTION_FILE = "otter_jax.json"


class Input(NamedTuple):
    """What a user gives to a tower's program.

    Attributes:
        name: as transformers' processors call it.
        shape: without the batch.
        dtype: as they give it.
        converted: the type that the tower takes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    converted: str


class Program(NamedTuple):
    """What becomes one file."""

    name: str
    tower: str  # Its class, for messages.
    function: Callable[..., jax.Array]
    inputs: tuple[Input, ...]


def save_onnx(encoder: Encoder, folder: str | Path) -> None:
    """Write both towers of a model, and check either in onnxruntime.

    Args:
        encoder: the model.
        folder: empty or new.

    Raises:
        ValueError: there is something in the folder, or a tower cannot be converted, or gives other
            numbers in onnxruntime.
        ModuleNotFoundError: the extra [onnx] is not installed.
    """
    jax2onnx = _import_jax2onnx()
    folder = export.new_folder(folder)
    module = _in_float32(encoder.model.bind(encoder.variables))
    for program in _programs(module, encoder.image_size, encoder.tokenizer.max_tokens):
        path = folder / f"{program.name}.onnx"
        _write(_convert(jax2onnx, program), path)
        _check(path, program, module.text.config.vocab_size)
    encoder.tokenizer.save(folder)
    export.write_preprocessing(module.image, folder, encoder.sizes())
    description = json.dumps(_describe(encoder, module), indent=2)
    (folder / DESCRIPTION_FILE).write_text(f"{description}\n", encoding="utf-8")


def _import_jax2onnx() -> ModuleType:
    try:
        # It logs the tracebacks of plugins for libraries that are of no concern here.
        with _without_logging():
            import jax2onnx
            import onnxruntime  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'writing ONNX needs {error.name}; run: pip install -e ".[onnx]"'
        ) from None
    return jax2onnx


@contextlib.contextmanager
def _without_logging() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _in_float32(module: DualEncoder) -> DualEncoder:
    """Return the same network computing in float32, which every runtime knows."""
    copy = blueprint.build(blueprint.describe(module))
    nnx.update(copy, nnx.state(module))
    return copy


def _programs(module: DualEncoder, size: int, length: int) -> list[Program]:
    def embed_image(pixels: jax.Array) -> jax.Array:
        features = module.image(jnp.moveaxis(pixels, 1, -1)).pooled
        return objectives.normalize(module.image_projection(features))

    def embed_text(tokens: jax.Array, mask: jax.Array) -> jax.Array:
        return objectives.normalize(module.text_projection(module.text(tokens, mask).pooled))

    pixels = Input("pixel_values", (3, size, size), "float32", "float32")
    tokens = Input("input_ids", (length,), "int64", "int32")
    mask = Input("attention_mask", (length,), "int64", "bool")
    return [
        Program("image", type(module.image).__name__, embed_image, (pixels,)),
        Program("text", type(module.text).__name__, embed_text, (tokens, mask)),
    ]


def _convert(jax2onnx: ModuleType, program: Program) -> Any:
    """Return a program as ONNX's ModelProto."""
    (batch,) = jax.export.symbolic_shape(BATCH)
    inputs = [jax.ShapeDtypeStruct((batch, *each.shape), each.converted) for each in program.inputs]
    try:
        with portable_operations(), _without_logging():
            proto = jax2onnx.to_onnx(
                program.function,
                inputs=inputs,
                input_names=[each.name for each in program.inputs],
                output_names=[f"{program.name}_embeds"],
                opset=OPSET,
                model_name=f"otter_jax {program.name}",
            )
    except Exception as error:  # Of the many kinds that an operation unknown to it causes.
        raise _refusal(program, error) from error
    _accept_int64(proto.graph, program.inputs)
    return proto


def _refusal(program: Program, error: Exception) -> ValueError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return ValueError(
        f"the {program.name} tower, {program.tower}, cannot be written as ONNX ({reason})"
    )


def _accept_int64(graph: Any, inputs: Sequence[Input]) -> None:
    """Let a graph take the type of numbers that tokenizers give, and JAX does not have."""
    import onnx

    for given, wanted in zip(graph.input, inputs, strict=True):
        if wanted.dtype == wanted.converted:
            continue
        converted = f"{wanted.name}_as_{wanted.converted}"
        for node in graph.node:
            node.input[:] = [converted if name == wanted.name else name for name in node.input]
        element = given.type.tensor_type.elem_type
        graph.node.insert(0, onnx.helper.make_node("Cast", [wanted.name], [converted], to=element))
        given.type.tensor_type.elem_type = onnx.TensorProto.INT64


def _write(proto: Any, path: Path) -> None:
    import onnx

    large = sum(len(array.raw_data) for array in proto.graph.initializer) > LARGEST_FILE
    onnx.save_model(proto, path, save_as_external_data=large, location=f"{path.name}.data")


def _check(path: Path, program: Program, vocabulary: int) -> None:
    """Refuse a file that gives other numbers than JAX, on batches of two sizes."""
    import onnxruntime

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3  # It warns of every constant that it folds away.
    try:
        session = onnxruntime.InferenceSession(path, quiet, providers=["CPUExecutionProvider"])
    except Exception as error:  # Classes of its own, below nothing in common.
        raise _refusal(program, error) from error
    draw = np.random.default_rng(0)
    arrays = {each.name: _example(each, vocabulary, draw) for each in program.inputs}
    converted = [arrays[each.name].astype(each.converted) for each in program.inputs]
    wanted = np.asarray(jax.jit(program.function)(*converted))
    for count in (1, len(wanted)):
        (found,) = session.run(None, {name: array[:count] for name, array in arrays.items()})
        error = np.abs(found - wanted[:count]).max()
        if not error <= TOLERANCE:
            raise ValueError(
                f"{path.name}, of {program.tower}, is off by {error:.1g} in onnxruntime, more than "
                f"{TOLERANCE:g}"
            )


def _example(each: Input, vocabulary: int, draw: np.random.Generator) -> np.ndarray:
    """Return input for a check, two rows of it: noise, or texts of which the second is short."""
    shape = (2, *each.shape)
    if each.converted == "float32":
        return draw.normal(size=shape).astype(each.dtype)
    if each.converted == "int32":
        return draw.integers(vocabulary, size=shape).astype(each.dtype)
    mask = np.ones(shape, each.dtype)
    mask[-1, shape[1] // 2 :] = 0
    return mask


def _describe(encoder: Encoder, module: DualEncoder) -> dict[str, Any]:
    """Return how embeddings become logits, and what the programs take for granted."""
    scale = objectives.scale_from_log(module.log_scale[...], *encoder.scale_bounds)
    bias = {"logit_bias": float(module.logit_bias[...])} if hasattr(module, "logit_bias") else {}
    return {
        "logit_scale": float(scale),
        **bias,
        "embed_dim": module.embed_dim,
        "image_size": encoder.image_size,
        "fit": encoder.fit,
        "max_tokens": encoder.tokenizer.max_tokens,
        "cleaning": encoder.tokenizer.cleaning,
        "stripped_id": encoder.tokenizer.stripped_id,
    }
