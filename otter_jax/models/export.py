"""Writes towers and dual encoders as folders that other programs, and this one, read.

Where Hugging Face's transformers has the architecture, the folder is of its kind: `AutoModel` loads
it and gives the same numbers. That holds for the BERT family, ViT, ResNet, CLIP's two transformers,
and a dual encoder made of the latter (`CLIPModel`). Any other model becomes a folder of this
package's kind, `model_type` "otter_jax", its weights under the names that its towers have in
PyTorch. `from_pretrained` reads both.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from otter_jax.models import (
    bert,
    bert_layouts,
    clip_text,
    clip_text_layouts,
    lora,
    resnet,
    resnet_layouts,
    vit,
    vit_layouts,
)
from otter_jax.models.blueprint import describe, describe_tower
from otter_jax.models.checkpoint_files import OWN_KEY, read_json
from otter_jax.models.descriptions import NUMBER, PART
from otter_jax.models.dual_encoder import DualEncoder
from otter_jax.models.export_open_clip import export_open_clip
from otter_jax.models.own_descriptions import read_entry
from otter_jax.models.preprocessing import INTERPOLATIONS
from otter_jax.models.pretrained import from_pretrained
from otter_jax.models.projections import kind_of
from otter_jax.models.weights import CheckpointLayout, checkpoint_arrays, first_layout

MODEL_TYPE = "otter_jax"
DATA_KEY = "data"

HEADS = ("cls.", "lm_head.", "vocab_")  # Of the BERT family's masked language models.

Arrays = dict[str, np.ndarray]
Fields = dict[str, Any]


class HuggingFaceForm(NamedTuple):
    """A tower as transformers has it."""

    architecture: str
    fields: Fields  # Of config.json.
    layout: CheckpointLayout
    prefix: str = ""  # Of the names in a file of the tower alone, but for a head's.
    leading_axes: Mapping[str, int] = {}  # Which arrays have axes of size 1 in front.

    def arrays(self, tower: nnx.Module) -> Arrays:
        """Return the tower's weights under Hugging Face's names, without the prefix."""
        arrays = checkpoint_arrays(tower, self.layout.names)
        for name, count in self.leading_axes.items():
            arrays[name] = arrays[name].reshape((1,) * count + arrays[name].shape)
        return arrays

    def prefixed_arrays(self, tower: nnx.Module) -> Arrays:
        """Return the tower's weights as a file of the tower alone names them."""
        return {
            name if name.startswith(HEADS) else f"{self.prefix}{name}": array
            for name, array in self.arrays(tower).items()
        }


def export_tower(tower: nnx.Module, folder: str | Path) -> None:
    """Write a tower as config.json, model.safetensors and, of an image tower, its normalisation.

    Args:
        tower: of any class in `pretrained.IMAGE_TOWERS` or `TEXT_TOWERS`; low-rank updates are
            merged into its layers.
        folder: empty or new.

    Raises:
        ValueError: there is something in the folder.
    """
    folder, tower = new_folder(folder), lora.merge(tower)
    form = hugging_face_form(tower)
    if form is None:
        fields = {"model_type": MODEL_TYPE, OWN_KEY: describe_tower(tower)}
        arrays = _own_arrays(tower)
    else:
        fields = {**form.fields, "architectures": [form.architecture]}
        arrays = form.prefixed_arrays(tower)
    _write(folder, fields, arrays)
    if hasattr(tower, "mean"):
        write_preprocessing(tower, folder, None)
    if isinstance(tower, bert.Bert):
        _write_pooling(folder, tower)


class Sizes(NamedTuple):
    """How evaluation brings images to the model's size."""

    image_size: int
    resized_side: int  # Before the centre is cut out.
    mode: str = "shortest"  # See `preprocessing.Resize`.
    interpolation: str = "bicubic"


def export_dual_encoder(
    module: DualEncoder,
    folder: str | Path,
    data: Mapping[str, Any] | None = None,
    sizes: Sizes | None = None,
) -> None:
    """Write a dual encoder as config.json, model.safetensors and preprocessor_config.json.

    A model that open_clip has, too, is also written for it, unless its images are cut out of larger
    ones, which open_clip cannot say.

    Args:
        module: the model; low-rank updates are merged into its layers.
        folder: empty or new.
        data: what else `load_dual_encoder` should give back, of JSON's types.
        sizes: what is done to images in evaluation; None where no image processor of Hugging Face's
            does it, which then only hears of mean and deviation.

    Raises:
        ValueError: there is something in the folder.
    """
    folder, module = new_folder(folder), lora.merge(module)
    fields, arrays = _clip(module) or _own(module)
    own = describe(module) | {DATA_KEY: dict(data or {})}
    own["distillation_log_scale"] = float(module.distillation_log_scale[...])
    _write(folder, fields | {OWN_KEY: own}, arrays)
    write_preprocessing(module.image, folder, sizes)
    # open_clip has no margin around the crop; a folder that it reads would give other numbers.
    if sizes is not None and sizes.resized_side == sizes.image_size:
        mode = sizes.mode.removesuffix("_floor")
        preprocess = {"resize_mode": mode, "interpolation": sizes.interpolation}
        export_open_clip(module, folder, preprocess)


def is_exported(folder: Path) -> bool:
    """Return whether `export_dual_encoder` has written a folder."""
    path = folder / "config.json"
    own = read_json(path).get(OWN_KEY) if path.is_file() else None
    return isinstance(own, Mapping) and not {"image", "text", DATA_KEY}.isdisjoint(own)


def load_dual_encoder(folder: str | Path) -> tuple[DualEncoder, Fields]:
    """Return the model of a folder of `export_dual_encoder`, and the data written with it.

    Raises:
        FileNotFoundError: the folder has no weights.
        ValueError: it is damaged or of another kind.
    """
    module = from_pretrained(folder)
    own = read_json(Path(folder) / "config.json").get(OWN_KEY, {})
    if not isinstance(module, DualEncoder) or DATA_KEY not in own:
        raise ValueError(f"{folder} holds no exported image-text model")
    source = f"{folder}: config.json's {OWN_KEY}"
    scale = read_entry(own, "distillation_log_scale", NUMBER, source)
    module.distillation_log_scale.set_value(jnp.float32(scale))
    return module, read_entry(own, DATA_KEY, PART, source)


def hugging_face_form(tower: nnx.Module) -> HuggingFaceForm | None:
    """Return what a tower is in transformers, None if it has no such architecture."""
    make = _FORMS.get(type(tower))
    return make(tower.config) if make else None


def _clip(module: DualEncoder) -> tuple[Fields, Arrays] | None:
    """Return a whole CLIP as transformers has it, None if the model is no CLIP."""
    forms = [hugging_face_form(tower) for tower in (module.image, module.text)]
    kinds = {kind_of(module.image_projection), kind_of(module.text_projection)}
    architectures = [form.architecture for form in forms if form]
    if architectures != ["CLIPVisionModel", "CLIPTextModel"] or kinds != {"linear_no_bias"}:
        return None
    image, text = forms
    fields = {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": module.embed_dim,
        "vision_config": image.fields,
        "text_config": text.fields,
    }
    arrays = {
        **image.prefixed_arrays(module.image),
        **text.prefixed_arrays(module.text),
        **_prefixed("visual_projection.", checkpoint_arrays(module.image_projection)),
        **_prefixed("text_projection.", checkpoint_arrays(module.text_projection)),
        "logit_scale": np.asarray(module.log_scale[...]),
        **_bias(module),
    }
    return fields, arrays


def _own(module: DualEncoder) -> tuple[Fields, Arrays]:
    """Return any dual encoder, under this package's names."""
    arrays = {
        **_prefixed("image.", _own_arrays(module.image)),
        **_prefixed("text.", _own_arrays(module.text)),
        **_prefixed("image_projection.", checkpoint_arrays(module.image_projection)),
        **_prefixed("text_projection.", checkpoint_arrays(module.text_projection)),
        "log_scale": np.asarray(module.log_scale[...]),
        **_bias(module),
    }
    return {"model_type": MODEL_TYPE}, arrays


def _bias(module: DualEncoder) -> Arrays:
    """Return what the sigmoid loss has learnt to add to similarities, if there is any."""
    has_bias = hasattr(module, "logit_bias")
    return {"logit_bias": np.asarray(module.logit_bias[...])} if has_bias else {}


def _own_arrays(tower: nnx.Module) -> Arrays:
    form = hugging_face_form(tower)
    return form.arrays(tower) if form else checkpoint_arrays(tower, first_layout(tower).names)


def _prefixed(prefix: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    return {f"{prefix}{name}": array for name, array in arrays.items()}


# The fields that a configuration here shares with Hugging Face's by name.
_BERT_FIELDS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "max_position_embeddings", "hidden_act", "layer_norm_eps"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "pad_token_id"),
    "tie_word_embeddings",
)
_TRANSFORMER_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("hidden_act", "layer_norm_eps"),
)


def _pick(config: Any, names: tuple[str, ...]) -> Fields:
    return {name: getattr(config, name) for name in names}


# What transformers' code of the family takes for granted, beside what `bert_layouts` has of it.
_BERT_CONSTANTS = {
    "embedding_size": None,
    "shared_layer": False,
    "positions_after_padding": False,
    "relative_attention_num_buckets": 0,
}
_ROBERTA_CONSTANTS = _BERT_CONSTANTS | {"positions_after_padding": True}
_DISTILBERT_CONSTANTS = _BERT_CONSTANTS | bert_layouts.DISTILBERT_CONSTANTS
_MPNET_CONSTANTS = {
    "embedding_size": None,
    "shared_layer": False,
    "positions_after_padding": True,
    **bert_layouts.MPNET_CONSTANTS,
}


def _bert(config: bert.BertConfig) -> HuggingFaceForm | None:
    if config.positions_after_padding:  # Read from a lone file of a RoBERTa.
        return _roberta(config)
    if not config.type_vocab_size or _differs(config, _BERT_CONSTANTS):
        return None
    fields = {"model_type": "bert", "type_vocab_size": config.type_vocab_size}
    return _bert_like("Bert", fields | _pick(config, _BERT_FIELDS), config, "bert.")


def _roberta(config: bert.BertConfig) -> HuggingFaceForm | None:
    if not config.type_vocab_size or _differs(config, _ROBERTA_CONSTANTS):
        return None
    fields = {"model_type": "roberta", "type_vocab_size": config.type_vocab_size}
    return _bert_like("Roberta", fields | _pick(config, _BERT_FIELDS), config, "roberta.")


def _mpnet(config: bert.BertConfig) -> HuggingFaceForm | None:
    if _differs(config, _MPNET_CONSTANTS):
        return None
    buckets = {"relative_attention_num_buckets": config.relative_attention_num_buckets}
    fields = {"model_type": "mpnet"} | _pick(config, _BERT_FIELDS) | buckets
    return _bert_like("MPNet", fields, config, "mpnet.")


def _distilbert(config: bert.BertConfig) -> HuggingFaceForm | None:
    if _differs(config, _DISTILBERT_CONSTANTS):
        return None
    theirs = {ours: name for name, ours in bert_layouts.DISTILBERT_FIELDS.items()}
    fields = {theirs.get(name, name): value for name, value in _pick(config, _BERT_FIELDS).items()}
    return _bert_like("DistilBert", {"model_type": "distilbert"} | fields, config, "distilbert.")


def _differs(config: Any, constants: Mapping[str, Any]) -> bool:
    """Return whether a configuration has other values than transformers' code takes for granted."""
    return any(getattr(config, name) != value for name, value in constants.items())


def _bert_like(name: str, fields: Fields, config: bert.BertConfig, prefix: str) -> HuggingFaceForm:
    layout = {
        "Bert": bert_layouts.BERT_LAYOUT,
        "Roberta": bert_layouts.ROBERTA_LAYOUT,
        "MPNet": bert_layouts.MPNET_LAYOUT,
        "DistilBert": bert_layouts.DISTILBERT_LAYOUT,
    }[name]
    if config.mlm_head:
        return HuggingFaceForm(f"{name}ForMaskedLM", fields, layout, prefix)
    return HuggingFaceForm(f"{name}Model", fields, layout)


# What transformers' ViT, and its CLIP, take for granted.
_VIT_CONSTANTS = {
    "class_token": True,
    "register_tokens": 0,
    "prefix_positions": 1,
    "pooling": "cls",
    "norm_after_pooling": False,
    "layer_scale": False,
    "gated": False,
}
_CLIP_TEXT_CONSTANTS = {"causal": True, "pooling": "eos", "layer_scale": False, "gated": False}
_RESNET_CONSTANTS = {"batch_norm_epsilon": 1e-5, "deep_stem": (), "average_downsample": False}


def _vit(config: vit.ViTConfig) -> HuggingFaceForm | None:
    if _differs(config, _VIT_CONSTANTS):
        return None
    fields = _pick(config, (*_TRANSFORMER_FIELDS, "image_size", "patch_size"))
    dropout = {"attention_dropout": config.attention_probs_dropout_prob}
    form = (config.pre_norm, config.patch_bias)
    if form == (True, False) and config.qkv_bias:
        fields |= {"model_type": "clip_vision_model"} | dropout
        layout, prefix = vit_layouts.HUGGING_FACE_CLIP_LAYOUT, "vision_model."
        return HuggingFaceForm("CLIPVisionModel", fields, layout, prefix)
    if form == (False, True):
        fields |= _pick(
            config, ("qkv_bias", "hidden_dropout_prob", "attention_probs_dropout_prob")
        ) | {"model_type": "vit"}
        axes = {"embeddings.cls_token": 2, "embeddings.position_embeddings": 1}
        return HuggingFaceForm(
            "ViTModel", fields, vit_layouts.HUGGING_FACE_LAYOUT, leading_axes=axes
        )
    return None


def _clip_text(config: clip_text.ClipTextConfig) -> HuggingFaceForm | None:
    if _differs(config, _CLIP_TEXT_CONSTANTS):
        return None
    fields = _pick(config, (*_TRANSFORMER_FIELDS, "vocab_size", "max_position_embeddings"))
    eos = config.eos_token_id
    fields |= {
        "model_type": "clip_text_model",
        "attention_dropout": config.attention_probs_dropout_prob,
        "bos_token_id": None,  # Else CLIP's, at which transformers warns in a small vocabulary.
        # transformers takes this id for "the highest id of each text".
        "eos_token_id": clip_text_layouts.WRONG_EOS_TOKEN_ID if eos is None else eos,
    }
    layout = clip_text_layouts.HUGGING_FACE_LAYOUT
    return HuggingFaceForm("CLIPTextModel", fields, layout, "text_model.")


def _resnet(config: resnet.ResNetConfig) -> HuggingFaceForm | None:
    if _differs(config, _RESNET_CONSTANTS):
        return None
    fields = {
        "model_type": "resnet",
        "embedding_size": config.stem_width,
        "hidden_sizes": list(config.stage_widths),
        "depths": list(config.depths),
        "layer_type": config.block,
        "downsample_in_first_stage": config.downsample_in_first_stage,
        "downsample_in_bottleneck": config.downsample_in_bottleneck,
    }
    return HuggingFaceForm("ResNetModel", fields, resnet_layouts.HUGGING_FACE_LAYOUT)


_FORMS: Mapping[type[nnx.Module], Callable[[Any], HuggingFaceForm | None]] = {
    bert.Bert: _bert,
    bert.Roberta: _roberta,
    bert.DistilBert: _distilbert,
    bert.MPNet: _mpnet,
    vit.ViT: _vit,
    clip_text.ClipText: _clip_text,
    resnet.ResNet: _resnet,
}


def new_folder(folder: str | Path) -> Path:
    """Return a folder to write into; ValueError if there is something in it."""
    folder = Path(folder)
    refuse_used(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def refuse_used(folder: Path) -> None:
    """Refuse to write where there is a file, or a folder with something in it (ValueError)."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} should be a new or an empty folder")


def _write(folder: Path, fields: Mapping[str, Any], arrays: Arrays) -> None:
    _write_json(folder / "config.json", fields)
    # transformers asks which library's order of axes this is.
    weights = folder / "model.safetensors"
    save_file(arrays, weights, metadata={"format": "pt"})
    weights.chmod((folder / "config.json").stat().st_mode)  # Else for the owner's eyes only.


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_preprocessing(tower: nnx.Module, folder: Path, sizes: Sizes | None) -> None:
    """Write preprocessor_config.json: what is done to images, mean and deviation if nothing."""
    _write_json(folder / "preprocessor_config.json", _pixels(tower, sizes))


def _pixels(tower: nnx.Module, sizes: Sizes | None) -> Fields:
    """Return what Hugging Face's image processors should do to an image."""
    fields = {
        "image_processor_type": "CLIPImageProcessor",
        "image_mean": list(tower.mean),
        "image_std": list(tower.std),
    }
    if sizes is None:
        return fields
    side, crop = sizes.resized_side, sizes.image_size
    squash = {"height": side, "width": side}
    return fields | {
        "size": squash if sizes.mode == "squash" else {"shortest_edge": side},
        "do_center_crop": True,
        "crop_size": {"height": crop, "width": crop},
        "resample": INTERPOLATIONS.index(sizes.interpolation),
    }


def _write_pooling(folder: Path, tower: bert.Bert) -> None:
    """Say how a sentence's features are made, as sentence-transformers does."""
    _write_json(
        folder / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {
                "idx": 1,
                "name": "1",
                "path": "1_Pooling",
                "type": "sentence_transformers.models.Pooling",
            },
        ],
    )
    (folder / "1_Pooling").mkdir()
    _write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": tower.width,
            "pooling_mode_cls_token": tower.config.pooling == "cls",
            "pooling_mode_mean_tokens": tower.config.pooling == "mean",
        },
    )
