"""Models between two: weights that are means of both (Wortsman et al., "WiSE-FT", 2022).

Between a pretrained model and what fine-tuning made of it there are often models that know the new
nearly as well and have forgotten less. Low-rank updates are merged first, as their products do not
lie on the line between the two.
"""

import dataclasses
from pathlib import Path

import jax

from otter_jax import config as config_lib
from otter_jax import sharding
from otter_jax.embedding.encoder import (
    TOKENIZER_FOLDER,
    Encoder,
    build_module,
    make_encoder,
)
from otter_jax.models import dual_encoder, lora


def load_start(workdir: Path) -> Encoder:
    """Return the model that a run began with; it needs the pretrained weights again.

    Raises:
        FileNotFoundError, ModuleNotFoundError: they are gone, or it is no workdir.
    """
    config = config_lib.load_config(workdir / "config.json")
    with sharding.on_host():
        model, variables = dual_encoder.split(build_module(config))
    mesh, tokenizer = sharding.make_mesh(), workdir / TOKENIZER_FOLDER
    placed = sharding.put_state(mesh, variables)
    return make_encoder(config, model, placed, mesh, tokenizer if tokenizer.is_dir() else None)


def interpolate(start: Encoder, end: Encoder, share: float) -> Encoder:
    """Return the model at a share of the way from one to another; 0 and 1 are these to the bit.

    Args:
        start: at 0.
        end: at 1; tokenizer and transform are its.
        share: in [0, 1].

    Raises:
        ValueError: for another share, or two models whose arrays differ in name or shape.
    """
    refuse_no_share(share)
    model, variables = _merged(end)
    _, first = _merged(start)
    _refuse_other_network(first, variables)
    mean = jax.tree.map(lambda a, b: (1 - share) * a + share * b, first, variables)
    return dataclasses.replace(end, model=model, variables=mean)


def refuse_no_share(share: float) -> None:
    """Refuse what is no share of the way from one model to another (ValueError)."""
    if not 0 <= share <= 1:
        raise ValueError(f"interpolation at {share}: it must lie in [0, 1]")


def _merged(encoder: Encoder) -> tuple[dual_encoder.FunctionalModel, dual_encoder.Variables]:
    """Return a model without low-rank updates, all of whose parameters count as trained."""
    module = lora.merge(encoder.model.bind(encoder.variables))
    module.image_trainable = module.text_trainable = dual_encoder.TrainableParts()
    return dual_encoder.split(module)


def _refuse_other_network(start: dual_encoder.Variables, end: dual_encoder.Variables) -> None:
    shapes = [
        {dual_encoder.parameter_name(path): x.shape for path, x in leaves}
        for leaves in map(jax.tree.leaves_with_path, (start, end))
    ]
    names = sorted({*shapes[0], *shapes[1]})
    different = [name for name in names if shapes[0].get(name) != shapes[1].get(name)]
    if different:
        first, *found = different[0], *(each.get(different[0]) for each in shapes)
        raise ValueError(
            f"there is nothing between models of different networks; of {len(names)} arrays "
            f"{len(different)} differ, first {first}: {found[0]} and {found[1]}"
        )
