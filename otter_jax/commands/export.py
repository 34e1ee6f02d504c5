"""Writes a trained model as one folder: otter-jax export WORKDIR FOLDER.

`otter_jax.load` reads the folder on any machine, without the workdir and without the pretrained
weights that training began with. A CLIP is read by transformers too (see models/export.py). With
--format=onnx the folder holds image.onnx and text.onnx instead, for runtimes without JAX.
"""

from collections.abc import Sequence

from otter_jax.commands.command_line import Parser, path_of
from otter_jax.embedding.encoder import load
from otter_jax.embedding.onnx_export import save_onnx


def main(arguments: Sequence[str]) -> None:
    """Export what the command line says."""
    parser = Parser(prog="otter-jax export", description=__doc__)
    parser.add_argument("workdir", type=path_of, help="folder of a run, with a finished checkpoint")
    parser.add_argument("folder", type=path_of, help="folder to write; new or empty")
    parser.add_argument(
        "--format", choices=("safetensors", "onnx"), default="safetensors", help="what to write"
    )
    options = parser.parse_args(arguments)
    encoder = load(options.workdir)
    if options.format == "onnx":
        save_onnx(encoder, options.folder)
    else:
        encoder.save(options.folder)
    print(f"otter_jax: exported {options.workdir} to {options.folder}")
