"""The models between a run's start and its end, measured and drawn."""

from otter_jax.embedding.interpolation import interpolate
from otter_jax.evaluation import tables
from otter_jax.json_files import write_json
from otter_jax.models.dual_encoder import Variables
from otter_jax.pictures.curves import draw_interpolation
from otter_jax.terminal import say
from otter_jax.training.parts import Parts, Results


def measure_interpolations(parts: Parts, variables: Variables, step: int) -> Results:
    """Measure the models between the run's start and its end; write and draw what was found."""
    start, end = parts.place_encoder(), parts.encoder.replace(variables)
    curve = {
        share: parts.measure(interpolate(start, end, share))
        for share in parts.config.evaluate.interpolate
    }
    picture = parts.workdir / "figures" / "interpolation.png"
    draw_interpolation(picture, curve)
    results = {"step": step, "interpolate": {str(share): each for share, each in curve.items()}}
    write_json(parts.workdir / "interpolation.json", results)
    say("\n".join(tables.interpolation_table(curve)))
    say(f"written to {parts.workdir / 'interpolation.json'}, and drawn in {picture}")
    return results
