"""The class bank by hand, and what is refused."""

import numpy as np
import pytest

from otter_jax.embedding.class_bank import class_bank


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_names_with_braces_are_put_in_as_they_are() -> None:
    seen: list[str] = []
    class_bank(lambda texts: seen.extend(texts) or unit(len(texts), 3), ["{0}"], ["a {}"])
    assert seen == ["a {0}"]


@pytest.mark.parametrize(
    ("names", "template", "message"),
    [
        ([], "a {}", "no class names"), (["a", " "], "a {}", "class 1 has a blank name"),
        (["a", []], "a {}", "class 1 has a blank name"), (["a"], "photo", r"needs a \{\}"),
        (["a", ["b", ""]], "a {}", "class 1 has a blank name"),
    ],
)  # fmt: skip
def test_bad_banks_are_refused(names: list, template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_bank(lambda texts: unit(len(texts), 3), names, [template])


def test_prompts_that_cancel_out_are_refused() -> None:
    opposite = {"x": np.array([1.0, 0.0]), "y": np.array([-1.0, 0.0])}
    with pytest.raises(ValueError, match=r"class 0 \('x'\) have no mean direction"):
        class_bank(lambda t: np.stack([opposite[x] for x in t]), [["x", "y"]], ["{}"])


def test_class_bank_averages_unit_prompts() -> None:
    prompts = {"a cat": unit(1, 3)[0], "the cat": unit(1, 3, seed=1)[0]}
    bank = class_bank(
        lambda texts: np.stack([prompts[text] for text in texts]), ["cat"], ["a {}", "the {}"]
    )
    mean = sum(prompts.values()) / 2
    np.testing.assert_allclose(bank[0], mean / np.linalg.norm(mean), rtol=1e-6)


def test_class_bank_averages_several_names() -> None:
    rows = dict(zip(("cat", "puss", "dog"), unit(3, 5), strict=True))
    bank = class_bank(
        lambda texts: np.stack([rows[text] for text in texts]), [["cat", "puss"], "dog"], ["{}"]
    )
    mean = rows["cat"] + rows["puss"]
    np.testing.assert_allclose(bank[0], mean / np.linalg.norm(mean), rtol=1e-6)
    np.testing.assert_allclose(bank[1], rows["dog"], rtol=1e-6)
