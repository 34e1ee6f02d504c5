"""Every key has a default, wrong ones are refused, and a saved config comes back."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from otter_jax import config as config_lib
from otter_jax.objectives import make_method
from otter_jax.preset_files import read_preset


def test_default_passes_its_own_checks() -> None:
    config_lib.check(config_lib.default_config())


def test_misspelt_key_is_an_error() -> None:
    with pytest.raises((AttributeError, KeyError), match="batchsize"):
        config_lib.default_config().batchsize = 3


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batch_size", 0, r"config\.batch_size=0"),
        ("batch_size", 1, "at least 2 pairs"),
        ("seed", -1, r"config\.seed=-1: it must be 0 to 4294967295"),
        ("seed", 2**32 + 5, r"config\.seed=4294967301: it must be 0 to"),
        ("data.fit", "stretch", "choose from crop, pad"),
        ("data.augmentation", "cutout", "choose from none"),
        ("optimizer.name", "lamb", "choose from sgd, adamw"),
        ("optimizer.learning_rate", float("nan"), "learning_rate=nan: it must be finite"),
        ("optimizer.learning_rate", float("inf"), "must be finite"),
        ("objective.epsilon", float("inf"), r"objective\.epsilon=inf: it must be finite"),
        ("data.weights", (1.0, float("nan")), r"weights=nan: it must be finite"),
        ("data.image_size", 10**7, r"image_size=10000000: it must be at most 16384"),
        ("optimizer.gradient_clip", -1.0, r"gradient_clip=-1\.0: it must be positive"),
        ("optimizer.gradient_clip", float("nan"), "must be finite"),
        ("teacher.decay", 1.0, r"\[0, 1\)"),
        ("optimizer.momentum", -0.1, r"\[0, 1\)"),
        ("optimizer.warmup_steps", -5, "must not be negative"),
        ("evaluate.template", "a photo", "needs a {}"),
        ("checkpoint.keep", 0, "must be positive"),
        ("model.text.projection", "cubic", "choose from linear, linear_no_bias, mlp, none, auto"),
        ("model.text.projection", "pretrained", r"set config\.model\.text\.pretrained too"),
        ("model.image.trainable", "layer(", "must be a regular expression"),
        ("profile", (5, 3), r"profile=\(5, 3\): it must be a first and a last step"),
        ("profile", (5,), "must be a first and a last step"),
        ("profile", (0, 1), "must be a first and a last step"),
        ("data.weights", ("nope",), "must be numbers, one for each source"),
        ("evaluate.sets", (3,), r"evaluate\.sets=\(3,\): it must be SPECs"),
    ],
)
def test_bad_value_is_named(key: str, value: object, message: str) -> None:
    config = config_lib.default_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        config_lib.check(config)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("nonsense", "unknown config key nonsense: all keys are listed by otter-jax train --help"),
        ("batchsize", "unknown config key batchsize: did you mean batch_size? All keys are listed"),
        ("data.trian", "unknown config key data.trian: did you mean data.train?"),
        ("decay", "did you mean teacher.decay?"),
        (
            "train.pretrained",
            "did you mean model.image.pretrained or model.pretrained or model.text.pretrained?",
        ),
    ],
)
def test_unknown_key_is_explained(key: str, said: str) -> None:
    assert said in config_lib.describe_unknown_key(key)
    for known in ("objective.alpha", "model.image.overrides.width"):
        assert config_lib.describe_unknown_key(known) is None


def test_a_decoder_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_lib.default_config()
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    config_lib.check(config)
    config.data.decoding = 2
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'otter_jax\[jpeg\]'"):
        config_lib.check(config)


def test_wandb_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_lib.importlib.util, "find_spec", lambda name: None)
    config = config_lib.default_config()
    config.wandb_project = "owls"
    with pytest.raises(
        ModuleNotFoundError, match=r"='owls' needs: pip install 'otter_jax\[wandb\]'"
    ):
        config_lib.check(config)


def test_frozen_in_whole_and_in_part_is_refused() -> None:
    config = config_lib.default_config()
    config.model.image.frozen, config.model.image.trainable = True, "layer4"
    with pytest.raises(ValueError, match="frozen=True with trainable='layer4': choose one"):
        config_lib.check(config)


@pytest.mark.parametrize(("key", "value"), [("alpha", 8.0), ("dropout", 0.1), ("layers", "query")])
def test_low_rank_options_without_a_rank_are_refused(key: str, value: object) -> None:
    config = config_lib.default_config()
    config.model.text.lora[key] = value
    with pytest.raises(ValueError, match=rf"text\.lora\.{key}={value!r} has no effect without"):
        config_lib.check(config)
    config.model.text.lora.rank = 4
    config_lib.check(config)


def test_saved_config_comes_back(tmp_path: Path) -> None:
    config = config_lib.default_config()
    config.total_steps = 7
    config.evaluate.sets = ("a", "b")
    config.model.text.allow_missing = ("head.*",)
    config.model.text.trainable = "layer4|projection"
    with config.unlocked():
        config.model.image.overrides.width = 16
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_lib.as_dict(config)))
    loaded = config_lib.load_config(path)
    assert config_lib.as_dict(loaded) == config_lib.as_dict(config)
    assert config_lib.differences(loaded, config) == []


def test_config_of_an_older_version_gets_new_defaults(tmp_path: Path) -> None:
    saved = config_lib.as_dict(config_lib.default_config())
    del saved["teacher"]["warmup"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(saved))
    assert config_lib.load_config(path).teacher.warmup is True


def test_unknown_saved_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"seeed": 1}))
    with pytest.raises(ValueError, match="unknown key 'seeed'"):
        config_lib.load_config(path)


def test_keys_that_could_not_be_read_again_are_refused() -> None:
    config = config_lib.default_config()
    with config.unlocked():
        config.model.image.overrides.width = 16
    config_lib.check(config)
    with config.unlocked():
        config.extra = 1
    with pytest.raises(ValueError, match="unknown keys \\['extra'\\]"):
        config_lib.check(config)


def test_differences_name_keys_but_not_bookkeeping() -> None:
    one, two = config_lib.default_config(), config_lib.default_config()
    two.objective.alpha = 0.25
    two.checkpoint.every_steps = 5
    two.data.max_bad_share = 0.5
    assert config_lib.differences(one, two) == ["objective.alpha: 0.5 -> 0.25"]


def test_total_steps_counts_epochs_without_rounding_each() -> None:
    config = config_lib.default_config()
    config.batch_size, config.total_epochs = 100, 3.0
    assert config_lib.total_steps(config, 250) == 7
    config.total_steps = 11
    assert config_lib.total_steps(config, 250) == 11


GOLDEN = Path(__file__).parent / "golden" / "configs"  # As version 0.1.0 wrote them into workdirs.
ASKED = {  # What their commands asked for, beside the name of the objective.
    **dict.fromkeys(("infonce", "kd", "otter", "sigmoid"), ("quickstart", {})),
    "declip": ("declip_quickstart", {}),
    "slip": ("declip_quickstart", {"data.augmentation": "light"}),
}


@pytest.mark.parametrize("name", ASKED)
def test_configs_of_earlier_runs_mean_what_they_meant(name: str) -> None:
    """They hold the options of all methods, and resume by the command that began them."""
    preset, changes = ASKED[name]
    asked = read_preset(preset)
    if name in ("declip", "slip"):
        changes = changes | {"total_steps": 20, "log_every_steps": 1, "optimizer.warmup_steps": 0}
    asked.update_from_flattened_dict({"objective.name": name} | changes)
    dropped = config_lib.unset_foreign_options(asked)
    assert dropped == (["queue_size"] if name == "slip" else [])
    saved = config_lib.load_config(GOLDEN / f"{name}.json")
    assert config_lib.differences(saved, asked) == []
    config_lib.check(saved)


def test_a_saved_config_has_the_methods_own_options_complete() -> None:
    config = config_lib.default_config()
    config.objective.name = "label_smoothing"
    own = config_lib.as_dict(config)["objective"]
    assert own.pop("name") == "label_smoothing"
    assert own == dataclasses.asdict(make_method("label_smoothing"))


def test_every_key_has_a_meaning_and_methods_their_own_defaults() -> None:
    described = {key: (default, meaning) for key, default, meaning in config_lib.describe_keys()}
    assert all(meaning for _, meaning in described.values())
    assert described["objective.image_weight"][0] == "0 (kd); 1 (otter, declip, slip)"
    assert described["optimizer.learning_rate"][0] == "0.003"


def test_all_that_is_wrong_is_said_at_once() -> None:
    config = config_lib.default_config()
    config.optimizer.momentum, config.data.fit, config.batch_size = 1.0, "stretch", -1
    with pytest.raises(
        ValueError, match=r"^3 things are wrong: \(1\) .*; \(2\) .*; \(3\) "
    ) as said:
        config_lib.check(config)
    for words in ("momentum=1.0: it must lie", "data.fit='stretch': choose", "batch_size=-1: it"):
        assert words in str(said.value)


def test_keys_that_may_be_unset_are_told_from_values() -> None:
    arguments = ["--config.model.image.pretrained=none", "--config.total_steps=None",
                 "--config.model.image.projection=none", "--config.data.augmentation=none",
                 "--config=none", "--config.objective.alpha=none"]  # fmt: skip
    rest, keys = config_lib.split_unset(arguments)
    assert keys == ["model.image.pretrained", "total_steps", "objective.alpha"]
    assert rest == arguments[2:5]
    config = config_lib.default_config()
    config.model.image.pretrained, config.total_steps = "somewhere", 3
    config_lib.unset(config, keys)
    assert config.model.image.pretrained is None and config.total_steps is None
    config.total_steps = 5  # Its type is still known.
    with pytest.raises(TypeError):
        config.total_steps = "five"


def test_fields_of_towers_are_taken_from_the_command_line() -> None:
    given = ["--config.model.image.overrides.hidden_act=gelu", "--config.seed=1",
             "--config.model.text.overrides.mean=(0.5,0.5,0.5)"]  # fmt: skip
    rest, overrides = config_lib.split_overrides(given)
    assert rest == ["--config.seed=1"]
    config = config_lib.default_config()
    config_lib.set_overrides(config, overrides)
    assert config.model.image.overrides.hidden_act == "gelu"
    assert config.model.text.overrides.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("text", ["", "[]", "5", '{"objective": 3}', '{"seed": 1'])
def test_a_damaged_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        config_lib.load_config(tmp_path / "config.json")
