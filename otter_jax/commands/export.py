"""Writes a trained model as one folder: otter-jax export WORKDIR FOLDER.

`otter_jax.load` reads the folder on any machine, without the workdir and without the pretrained
weights that training began with. A CLIP is read by transformers too (see models/export.py). With
--format=onnx the folder holds image.onnx and text.onnx instead, for runtimes without JAX.

With --interpolate=0.5 the weights are halfway between the model that training began with, or the
one that --start names, and the trained one (docs/finetuning.md).
"""

from collections.abc import Sequence

from otter_jax.commands.command_line import Parser, path_of
from otter_jax.embedding.encoder import load
from otter_jax.embedding.interpolation import interpolate, load_start, refuse_no_share
from otter_jax.embedding.onnx_export import save_onnx
from otter_jax.models.export import refuse_used
from otter_jax.runs.workdir import refuse_unwritable


def main(arguments: Sequence[str]) -> None:
    """Export what the command line says."""
    parser = Parser(prog="otter-jax export", description=__doc__)
    parser.add_argument("workdir", type=path_of, help="folder of a run, with a finished checkpoint")
    parser.add_argument("folder", type=path_of, help="folder to write; new or empty")
    parser.add_argument(
        "--format", choices=("safetensors", "onnx"), default="safetensors", help="what to write"
    )
    parser.add_argument(
        "--interpolate", type=float, help="share of the way from the start to the trained model"
    )
    parser.add_argument(
        "--start", help="another start: a workdir, an exported folder or a checkpoint"
    )
    options = parser.parse_args(arguments)
    refuse_unwritable(options.folder, "FOLDER")  # Before the model is read.
    refuse_used(options.folder)
    if options.start and options.interpolate is None:
        raise ValueError("--start is where --interpolate begins: set --interpolate=0.5 too")
    if options.interpolate is not None:
        refuse_no_share(options.interpolate)
    encoder = load(options.workdir)
    if options.interpolate is not None:
        start = load(options.start) if options.start else load_start(options.workdir)
        encoder = interpolate(start, encoder, options.interpolate)
    if options.format == "onnx":
        save_onnx(encoder, options.folder)
    else:
        encoder.save(options.folder)
    print(f"otter_jax: exported {options.workdir} to {options.folder}")
