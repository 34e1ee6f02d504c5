"""Models between two: the ends to the bit, low-rank updates merged, other networks refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models.test_lora import learn, small_model, with_lora

from otter_jax import sharding
from otter_jax.embedding.encoder import Encoder
from otter_jax.embedding.interpolation import interpolate
from otter_jax.evaluation.tables import interpolation_table
from otter_jax.models import dual_encoder, lora
from otter_jax.models.dual_encoder import TrainableParts


def encoder_of(module: dual_encoder.DualEncoder) -> Encoder:
    model, variables = dual_encoder.split(module)
    return Encoder(model, variables, None, None, sharding.make_mesh(), 32)


def arrays_of(encoder: Encoder) -> dict[str, np.ndarray]:
    """All arrays by name, of whichever are trained."""
    plain = lora.merge(encoder.model.bind(encoder.variables))
    plain.image_trainable = plain.text_trainable = TrainableParts()
    params = dual_encoder.split(plain)[1].params
    return {jax.tree_util.keystr(k): np.asarray(x) for k, x in jax.tree.leaves_with_path(params)}


def test_the_ends_are_the_models_to_the_bit_and_between_lies_the_mean() -> None:
    trained = small_model(**with_lora())
    learn(trained)
    start, end = encoder_of(small_model()), encoder_of(trained)
    first, last = arrays_of(start), arrays_of(end)
    for share, wanted in ((0, first), (1, last)):
        found = arrays_of(interpolate(start, end, share))
        assert set(found) == set(wanted)
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array)
    half = arrays_of(interpolate(start, end, 0.25))
    changed = 0
    for name, array in half.items():
        np.testing.assert_allclose(array, 0.75 * first[name] + 0.25 * last[name], atol=1e-6)
        changed += bool((array != first[name]).any())
    assert changed == 12  # The linear layers of both towers.
    again = arrays_of(interpolate(interpolate(start, end, 0.25), end, 0))  # Of plain models, too.
    np.testing.assert_array_equal(list(again), list(half))


def test_features_of_a_model_in_between_are_not_taken_for_the_start_s() -> None:
    """The store of features tells models apart by what counts as trained."""
    start, end = encoder_of(small_model(**with_lora())), encoder_of(small_model(**with_lora()))
    between = interpolate(start, end, 0.5)
    assert not jax.tree.leaves(between.variables.frozen)


def test_other_networks_and_shares_are_refused() -> None:
    start = encoder_of(small_model())
    other = small_model()
    other.logit_bias = nnx.Param(jnp.zeros(()))
    with pytest.raises(ValueError, match=r"different networks; of .* 1 differ, first params.logit"):
        interpolate(start, encoder_of(other), 0.5)
    with pytest.raises(ValueError, match=r"interpolation at 1.5"):
        interpolate(start, start, 1.5)


def test_the_table_marks_the_highest_mean() -> None:
    curve = {
        share: {"own": {"hit@1": own}, "other": {"hit@1": other}}
        for share, own, other in ((0.0, 0.1, 0.9), (0.5, 0.5, 0.8), (1.0, 0.6, 0.3))
    }
    lines = interpolation_table(curve)
    assert [line.endswith("highest") for line in lines] == [False, False, True, False]
    assert lines[2].split() == ["0.5", "50.0", "%", "80.0", "%", "65.0", "%", "highest"]
