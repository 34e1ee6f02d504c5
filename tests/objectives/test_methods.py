"""What can be chosen about an objective, and what is refused."""

import math
from pathlib import Path

import numpy as np
import pytest

from otter_jax import config as configuration
from otter_jax import objectives
from otter_jax.objectives.contrastive import Term


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("clip", {}, "choose from infonce, label_smoothing, kd, sigmoid, otter"),
        ("otter", {"epsilon": 0.0}, r"objective\.epsilon=0\.0"),
        ("otter", {"iterations": 0}, r"objective\.iterations=0"),
        ("kd", {"alpha": 1.5}, r"objective\.alpha=1\.5"),
        ("label_smoothing", {"smoothing": 1.0}, r"objective\.smoothing"),
        ("otter", {"tile": 0}, r"objective\.tile=0: it must be at least 1"),
        ("otter", {"epsilon": math.nan}, r"objective\.epsilon=nan"),
        ("otter", {"epsilon": math.inf}, r"objective\.epsilon=inf: it must be a finite number"),
        ("otter", {"epsilon": 2.0}, r"epsilon=2\.0: it must be at most 1\.9 with remove_diagonal"),
        ("otter", {"image_weight": math.nan}, r"objective\.image_weight=nan"),
        (
            "kd",
            {"cross_weight": 0.0},
            r"cross_weight=0\.0: it must not be 0 where image_weight and",
        ),
        ("otter", {"iterations": 2.5}, r"iterations=2\.5: .* a whole number"),
        ("otter", {"initial_bias": -10.0}, r"initial_bias=-10\.0: otter has no .*; sigmoid has"),
        (
            "infonce",
            {"epsilon": 0.1},
            r"epsilon=0\.1: infonce has no epsilon; otter, declip and slip",
        ),
        ("otter", {"epsilonn": 0.1}, "no objective has epsilonn"),
        ("kd", {"teacher_scale": -1.0}, r"objective\.teacher_scale=-1\.0"),
        ("infonce", {"initial_scale": 200.0}, r"objective\.initial_scale=200\.0"),
        ("sigmoid", {"stop_gradient_keys": True}, "sigmoid has no stop_gradient_keys"),
        (
            "otter",
            {"alpha": "guessed"},
            r"alpha=guessed: it must lie in \[0, 1\], or be 'estimated'",
        ),
        ("otter", {"alpha": (0.5,)}, r"it must lie in \[0, 1\], or be 'estimated'"),
        ("otter", {"pair_weight": "trust"}, "pair_weight=trust: it must be unset, or 'estimated'"),
        (
            "infonce",
            {"alpha": "estimated"},
            "infonce has no alpha; .* there is pair_weight='estimated'",
        ),
        (
            "declip",
            {"alpha": "estimated"},
            r"declip has a soft target only with targets=.otter",
        ),
        ("declip", {"alpha": "estimated", "targets": "kd"}, "targets=kd"),
        ("declip", {"epsilon": 0.05}, r"epsilon=0\.05: .* declip has a soft target only with tar"),
        ("slip", {"remove_diagonal": False}, "remove_diagonal=False: it must be unset: slip has"),
        (
            "kd",
            {"remove_diagonal": True, "teacher_scale": 0.1},
            r"teacher_scale=0\.1: it must be at least 0\.53 with remove_diagonal or known",
        ),
    ],
)
def test_bad_options_are_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objectives.make_method(name, **options)


def test_unset_options_follow_the_method() -> None:
    kd = objectives.make_method("kd", image_weight=None, remove_diagonal=None)
    otter = objectives.make_method("otter", image_weight=None, remove_diagonal=None)
    assert (kd.image_weight, kd.remove_diagonal) == (0.0, False)
    assert (otter.image_weight, otter.remove_diagonal) == (1.0, True)


def test_sigmoid_starts_as_its_paper_does() -> None:
    sigmoid, otter = (objectives.make_method(name) for name in ("sigmoid", "otter"))
    assert (sigmoid.initial_scale, sigmoid.initial_bias) == (10.0, -10.0)
    assert math.log(otter.initial_scale) == pytest.approx(3.9) and otter.initial_bias is None


def test_terms_of_each_objective() -> None:
    otter = objectives.make_method("otter", alpha=0.25)
    assert otter.terms() == (Term(0.25, identity=1.0), Term(0.75))
    mixed = objectives.make_method("otter", alpha=0.25, mixed_target=True)
    assert mixed.terms() == (Term(1.0, identity=0.25),)
    assert objectives.make_method("infonce").terms() == (Term(1.0),)


def test_terms_with_trust() -> None:
    trust = np.float32([0.0, 0.5, 1.0])
    options = objectives.make_method("otter", alpha="estimated", pair_weight="estimated")
    hard, soft = options.terms(trust)
    np.testing.assert_allclose(hard.weight, [0.0, 0.5, 2.0])
    np.testing.assert_allclose(soft.weight, [0.0, 0.5, 0.0])
    assert (hard.identity, soft.identity) == (1.0, 0.0)
    (mixed,) = objectives.make_method("kd", alpha="estimated", mixed_target=True).terms(trust)
    assert mixed.weight == 1.0 and mixed.identity is trust


@pytest.mark.parametrize(
    ("options", "needed"),
    [({}, False), ({"alpha": "estimated"}, True), ({"pair_weight": "estimated"}, True)],
)
def test_what_needs_trust(options: dict, needed: bool) -> None:
    assert objectives.make_method("otter", **options).uses_trust == needed
    assert objectives.make_method("slip", targets="otter", **options).uses_trust == needed


def test_estimated_alpha_can_be_configured_and_read_again(tmp_path: Path) -> None:
    config = configuration.default_config()
    config.objective.alpha = config.objective.pair_weight = "estimated"
    configuration.check(config)
    path = tmp_path / "config.json"
    path.write_text(config.to_json(), encoding="utf-8")
    again = objectives.make_method(**configuration.load_config(path).objective)
    assert (again.alpha, again.pair_weight) == ("estimated", "estimated")
