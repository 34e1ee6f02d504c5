"""Low-rank updates against PyTorch's peft: the same features and gradients on a BERT and a ViT."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from otter_jax.models import bert, vit
from otter_jax.models.export import export_tower
from otter_jax.models.lora import Lora, LoraLinear, add

pytestmark = pytest.mark.oracle
SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
RANK, ALPHA = 4, 6.0
ROWS = np.random.default_rng(0)


def bert_and_inputs() -> tuple[nnx.Module, tuple, dict]:
    config = bert.BertConfig(vocab_size=32, max_position_embeddings=16, **SHAPE)
    tokens = ROWS.integers(2, 30, size=(3, 7))
    ours = jnp.asarray(tokens, jnp.int32), jnp.ones((3, 7), bool)
    return bert.Bert(config, rngs=nnx.Rngs(0)), ours, {"input_ids": tokens}


def vit_and_inputs() -> tuple[nnx.Module, tuple, dict]:
    tower = vit.ViT(vit.ViTConfig(image_size=32, patch_size=8, **SHAPE), rngs=nnx.Rngs(0))
    images = ROWS.normal(size=(3, 32, 32, 3)).astype(np.float32)
    return tower, (jnp.asarray(images),), {"pixel_values": images.transpose(0, 3, 1, 2).copy()}


def updates_of(tower: nnx.Module) -> dict[str, LoraLinear]:
    """Layers by their number and name, such as "1.query"."""
    return {
        f"{path[1]}.{path[-1]}": layer
        for path, layer in nnx.iter_modules(tower)
        if isinstance(layer, LoraLinear)
    }


@pytest.mark.parametrize("make", [bert_and_inputs, vit_and_inputs])
def test_features_and_gradients_are_peft_s(make, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft", reason="pip install peft, which no extra has")
    from transformers import AutoModel

    tower, inputs, their_inputs = make()
    export_tower(tower, tmp_path / "tower")
    add(tower, Lora(RANK, ALPHA, layers="query|value"), rngs=nnx.Rngs(1))
    updates = updates_of(tower)
    assert len(updates) == 4
    for layer in updates.values():
        values = ROWS.normal(size=layer.lora_b.shape)
        layer.lora_b.set_value(jnp.asarray(values, jnp.float32))
    kind = nnx.All(nnx.Param, lambda path, _: str(path[-1]).startswith("lora_"))
    definition, params, rest = nnx.split(tower, kind, ...)

    def loss(params) -> tuple[jax.Array, jax.Array]:
        sequence = nnx.merge(definition, params, rest)(*inputs).sequence
        return jnp.sum(jnp.sin(sequence)), sequence

    gradients, features = jax.jit(jax.grad(loss, has_aux=True))(params)
    found = updates_of(nnx.merge(definition, gradients, rest))

    settings = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=r".*(query|value|q_proj|v_proj)"
    )
    model = peft.get_peft_model(AutoModel.from_pretrained(tmp_path / "tower"), settings).eval()
    theirs = {}
    for name, layer in model.named_modules():
        if isinstance(layer, peft.tuners.lora.Linear):
            number = next(part for part in name.split(".") if part.isdigit())
            leaf = {"q": "query", "v": "value"}[name.rpartition(".")[2][0]]
            theirs[f"{number}.{leaf}"] = layer.lora_A["default"], layer.lora_B["default"]
    assert set(theirs) == set(updates)
    with torch.no_grad():
        for name, (a, b) in theirs.items():
            a.weight.copy_(torch.tensor(np.array(updates[name].lora_a[...].T)))
            b.weight.copy_(torch.tensor(np.array(updates[name].lora_b[...].T)))
    tensors = {name: torch.tensor(array) for name, array in their_inputs.items()}
    sequence = model(**tensors).last_hidden_state
    torch.sin(sequence).sum().backward()
    np.testing.assert_allclose(features, sequence.detach().numpy(), atol=1e-4)
    for name, (a, b) in theirs.items():
        for ours, their in ((found[name].lora_a, a), (found[name].lora_b, b)):
            wanted = their.weight.grad.numpy().T
            np.testing.assert_allclose(ours[...], wanted, atol=1e-4 * abs(wanted).max())
