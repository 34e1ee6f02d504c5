"""Masked language modelling: which tokens of a caption are hidden, and what is to be recovered.

As in BERT (Devlin et al. 2019): 15 % of the tokens are chosen; of these 80 % become the mask token,
10 % a random token and 10 % stay. The chosen positions are listed in a fixed number of slots, so
that a head scores these positions and not all. Random tokens are ordinary ones; in DeCLIP's release
they are drawn from the whole vocabulary, and now and then put a second start or end into a caption,
which moves the end at which its text tower takes the feature.
"""

import functools
from collections.abc import Sequence

import numpy as np

CHOSEN_SHARE = 0.15
MASK_SHARE = 0.8  # of the chosen tokens
RANDOM_SHARE = 0.1
IGNORED = -100  # label of a slot that is not used
OVERFLOW_PROBABILITY = 0.01


@functools.cache
def num_masked_slots(max_tokens: int) -> int:
    """Return the slots for the chosen among `max_tokens` tokens.

    It is the smallest number that is exceeded with a probability below 0.01 when all tokens are
    ordinary; the surplus is then left unmasked. 19 of 77 tokens, for example. Few captions are that
    long, and every slot costs the scores of a whole vocabulary.
    """
    probability = (1 - CHOSEN_SHARE) ** max_tokens  # of choosing exactly `slots` tokens
    overflow = 1 - probability
    slots = 0
    while overflow >= OVERFLOW_PROBABILITY and slots < max_tokens:
        ratio = (max_tokens - slots) / (slots + 1)
        probability *= ratio * CHOSEN_SHARE / (1 - CHOSEN_SHARE)
        overflow -= probability
        slots += 1
    return slots


def mask_tokens(
    tokens: np.ndarray,
    maskable: np.ndarray,
    generators: Sequence[np.random.Generator],
    *,
    mask_id: int,
    ordinary_ids: np.ndarray,
) -> dict[str, np.ndarray]:
    """Choose and hide tokens of N captions, each as a function of its generator's state alone.

    Args:
        tokens: int32 [N, L].
        maskable: bool [N, L]; false for special tokens and padding, which are never chosen.
        generators: One for each caption.
        mask_id: What hidden tokens become.
        ordinary_ids: int [V]; what random tokens are drawn from.

    Returns:
        `masked_tokens`, int32 [N, L], and for K = `num_masked_slots(L)` slots `masked_positions`,
        int32 [N, K], and `masked_labels`, int32 [N, K]: the tokens that were there. The used
        slots come first, in no order; unused ones have position 0 and label -100.

    Raises:
        ValueError: If there are not as many generators as captions.
    """
    if len(generators) != len(tokens):
        raise ValueError(f"{len(generators)} generators for {len(tokens)} captions; one for each")
    length = tokens.shape[1]
    draws = np.array([generator.random((3, length)) for generator in generators])
    priority, fate, word = draws.reshape(-1, 3, length).swapaxes(0, 1)
    # The lowest draws below the threshold, so that which surplus is left out depends on no place.
    priority = np.where(maskable, priority, 1.0)
    positions = np.argsort(priority, axis=1)[:, : num_masked_slots(length)]

    priority, fate, word, labels = (
        np.take_along_axis(values, positions, axis=1) for values in (priority, fate, word, tokens)
    )
    chosen = priority < CHOSEN_SHARE
    random_ids = ordinary_ids[(word * len(ordinary_ids)).astype(np.int64)]
    replacements = np.where(fate < MASK_SHARE + RANDOM_SHARE, random_ids, labels)
    replacements = np.where(fate < MASK_SHARE, mask_id, replacements)
    masked = tokens.copy()
    np.put_along_axis(masked, positions, np.where(chosen, replacements, labels), axis=1)
    return {
        "masked_tokens": masked,
        "masked_positions": np.where(chosen, positions, 0).astype(np.int32),
        "masked_labels": np.where(chosen, labels, IGNORED).astype(np.int32),
    }
