"""What each preset's step takes of TPU slices and GPU machines of its paper's size; none is needed.

    pip install -e ".[plan,plan-gpu]"
    python benchmarks/plan_presets.py [--presets=otter_rn50,kd_rn50] [--out=plans/presets]

Prints the table of docs/planned.md. A cell is the step compiled once, about a minute of one core;
each is kept in the folder as soon as it is there, so that the script goes on where it was stopped,
and prints a table that is kept as a whole at once. A step that does not fit is compiled again with
each key that saves memory until one makes it fit. Presets for a laptop have no cells.
"""

import argparse
import dataclasses
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import jax

from otter_jax.commands.plan import (
    GIB,
    Plan,
    count_flops,
    plan,
    refuse,
    remedied,
    set_keys,
    steps_for,
)
from otter_jax.json_files import read_json, write_json
from otter_jax.preset_files import read_preset
from otter_jax.training.topologies import Topology, parse_topology

ONE = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "a100:1x1", "h100:1x1")
EIGHT = ("v4:2x2x2", "v5e:2x4", "v5p:2x2x2", "v6e:2x4", "a100:1x8", "h100:1x8")
THIRTY_TWO = ("v4:2x4x4", "v5e:4x8", "v5p:2x4x4", "v6e:4x8", "a100:4x8", "h100:4x8")
CONCEPTUAL_CAPTIONS = 2_911_810


@dataclasses.dataclass(frozen=True)
class Row:
    """A preset as its paper runs it.

    Attributes:
        slices: as many devices as in the paper, or as few as are sold.
        pairs: of its training set, where the steps of a run follow from it.
        keys: what only a checkpoint says otherwise, as on the command line.
    """

    slices: Sequence[str]
    pairs: int = 0
    keys: Sequence[str] = ()


ON_CONCEPTUAL_CAPTIONS = Row(EIGHT, CONCEPTUAL_CAPTIONS)
ON_YFCC = Row(THIRTY_TWO)
OF_CLIP = ("model.image.name=clip_vit_b32", "model.text.name=clip_text", "model.embed_dim=512",
           "data.image_size=224", "data.max_tokens=77")  # fmt: skip
OF_SIGLIP = ("model.image.name=vit_b16", "model.image.overrides.pooling=map",
             "model.text.name=clip_text_l14", "model.text.overrides.causal=False",
             "model.text.overrides.pooling=last", "model.text.overrides.vocab_size=32000",
             "model.text.overrides.max_position_embeddings=64", "model.embed_dim=768",
             "data.image_size=224", "data.max_tokens=64")  # fmt: skip
ROWS = {
    "infonce_rn50": ON_CONCEPTUAL_CAPTIONS,
    "label_smoothing_rn50": ON_CONCEPTUAL_CAPTIONS,
    "kd_rn50": ON_CONCEPTUAL_CAPTIONS,
    "self_distillation_rn50": ON_CONCEPTUAL_CAPTIONS,
    "otter_rn50": ON_CONCEPTUAL_CAPTIONS,
    "clip_rn50": ON_YFCC,
    "declip_rn50": ON_YFCC,
    "declip_vitb32": ON_YFCC,
    "slip_vitb32": ON_YFCC,
    "finetune_clip": Row(ONE, 100_000, OF_CLIP),
    "finetune_siglip": Row(ONE, 100_000, OF_SIGLIP),
}
HEADER = ("preset", "devices", "pairs", "GiB a device", "about fits", "limited by", "pairs/s",
          "hours")  # fmt: skip


def main() -> None:
    """Plan what is not kept, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", default=",".join(ROWS), help="names with commas")
    parser.add_argument(
        "--out", type=Path, default=Path("plans/presets"), help="a folder for cells"
    )
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    arguments.out.mkdir(parents=True, exist_ok=True)
    packages = ("jax", "libtpu", "jax-cuda12-plugin")
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages) + "\n")
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    for preset in arguments.presets.split(","):
        for name in ROWS[preset].slices:
            print(
                f"| {' | '.join(cell(preset, parse_topology(name), arguments.out))} |", flush=True
            )


def cell(preset: str, topology: Topology, folder: Path) -> list[str]:
    """Return a line of the table, whose plan is made unless the folder has it."""
    kept = folder / f"{preset}-{str(topology).replace(':', '-')}.json"
    try:
        if not kept.is_file():
            write_json(kept, planned(preset, topology, folder))
        facts = read_json(kept)
    except ValueError as error:
        return [f"`{preset}`", str(topology), f"not planned: {error}", *[""] * (len(HEADER) - 3)]
    found, key = Plan(**facts["plan"]), facts["key"]
    needed = f"{found.memory / GIB:.1f} of {found.chip_memory / GIB:.1f}"
    return [
        f"`{preset}`",
        str(topology),
        f"{found.batch_size:,}",
        needed + (f" with `{key}`" if key else "" if found.fits else ": does not fit"),
        f"{found.largest_batch:,}",
        found.limit,
        f"{found.batch_size / found.step_seconds:,.0f}",
        f"{found.steps * found.step_seconds / 3600:,.1f}",
    ]


def known_flops(preset: str, folder: Path) -> float | None:
    """Return the floating-point operations of a preset's step, if a cell of it is kept."""
    kept = (read_json(path) for path in folder.glob(f"{preset}-*.json"))
    return next((facts["plan"]["flops"] for facts in kept), None)


def planned(preset: str, topology: Topology, folder: Path) -> dict:
    """Return the plan of a preset, or of it with the first key that makes it fit, and that key."""
    config, row = read_preset(preset), ROWS[preset]
    set_keys(config, [f"--config.{key}" for key in row.keys])
    if row.pairs:
        config.total_steps = steps_for(config, row.pairs)
    refuse(config, topology)
    flops = known_flops(preset, folder) or count_flops(config)
    found, key = plan(config, topology, flops), None
    if not found.fits:
        for remedy, changed in remedied(config, topology):
            other = plan(changed, topology, flops)
            if other.fits:
                found, key = other, remedy
                break
    return {"plan": dataclasses.asdict(found), "key": key}


if __name__ == "__main__":
    main()
