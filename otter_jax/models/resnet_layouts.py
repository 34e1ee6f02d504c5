"""What the checkpoints of ResNets look like: names, and descriptions of what they compute.

Read from torchvision's and timm's state dicts, timm's and transformers' folders, and from files
with both towers of OpenAI's CLIP, open_clip and DeCLIP.
"""

import functools
import re
from dataclasses import replace
from typing import Any

import numpy as np

from otter_jax.models import timm_names
from otter_jax.models.descriptions import TRANSFORMERS_KEYS, Description, Guess, Keys, words
from otter_jax.models.preprocessing import CLIP_RESIZE
from otter_jax.models.weights import CheckpointArrays, CheckpointLayout

Fields = dict[str, Any]

# A deep stem lies in a sequence with its norms and activations.
STEM_NAMES = (
    (r"^conv1\.conv1", "conv1.0"),
    (r"^conv1\.bn1", "conv1.1"),
    (r"^conv1\.conv2", "conv1.3"),
    (r"^conv1\.bn2", "conv1.4"),
    (r"^conv1\.conv3", "conv1.6"),
)
DOWNSAMPLE_NAMES = ((r"downsample\.conv", "downsample.0"), (r"downsample\.norm", "downsample.1"))
# Behind a pooling, which has no weights.
AVERAGING_NAMES = ((r"downsample\.conv", "downsample.1"), (r"downsample\.norm", "downsample.2"))
TIMM_ARCHITECTURES = dict.fromkeys(
    (
        r"resnet(10|14|26|50)t",
        r"resnet(18|26|34|50|101|152|200)d?",
        r"resnet(50|101|152)[cs]",
        r"tv_resnet(34|50|101|152)",
    )
)
TIMM_ARGUMENTS = timm_names.COMMON_ARGUMENTS.extended(
    only={
        "global_pool": ("avg",),
        "aa_layer": (None,),
        "cardinality": (1,),
        "replace_stem_pool": (False,),
        "block_args": (None, {}),
        "avg_down": (True, False),  # As the weights' names say.
        "act_layer": (None, "relu"),
        "norm_layer": (None, "batchnorm2d"),
        "block_reduce_first": (1,),
        "down_kernel_size": (1,),
    },
    harmless=words("layers channels stem_width stem_type base_width drop_block_rate img_size"),
)
HUGGING_FACE_KEYS = TRANSFORMERS_KEYS.extended(
    fields={
        "layer_type": "block",
        "embedding_size": "stem_width",
        "hidden_sizes": "stage_widths",
        "depths": "depths",
        "downsample_in_first_stage": "downsample_in_first_stage",
        "downsample_in_bottleneck": "downsample_in_bottleneck",
    },
    only={"hidden_act": ("relu",)},
)
OPEN_CLIP_KEYS = Keys(
    # An attention pool's heads follow from `head_width`; its other activations are ReLUs.
    only={"timm_model_name": (None, ""), "attentional_pool": (False,)},
    harmless=words(
        """layers width head_width mlp_ratio patch_size image_size hidden_act eps patch_dropout
        pool_type output_tokens no_ln_pre final_ln_after_pool ls_init_value pos_embed_type
        timm_model_pretrained timm_pool timm_proj timm_proj_bias timm_drop timm_drop_path
        attn_pooler_queries attn_pooler_heads"""
    ),
)


def _torchvision_fields(
    saved: Description, arrays: CheckpointArrays, *, averages: bool = False
) -> Fields:
    """Read the shape of the network off a state dict with torchvision's names."""
    if saved:
        timm_names.architecture_of(saved, TIMM_ARCHITECTURES, "ResNet")
    depths = _depths(arrays)
    bottleneck = "layer1.0.conv3.weight" in arrays
    deep = "conv1.0.weight" in arrays
    _refuse_other_blocks(arrays, bottleneck)
    last = "conv3" if bottleneck else "conv2"
    shape = {
        "block": "bottleneck" if bottleneck else "basic",
        "stem_width": len(arrays["conv1.6.weight" if deep else "conv1.weight"]),
        "deep_stem": (len(arrays["conv1.0.weight"]), len(arrays["conv1.3.weight"])) if deep else (),
        "stage_widths": tuple(
            len(arrays[f"layer{number}.0.{last}.weight"]) for number in range(1, len(depths) + 1)
        ),
        "depths": depths,
    }
    shape["average_downsample"] = averages
    if not saved:
        # Anti-aliased and dilated networks have the same names and shapes.
        return shape | {"anti_aliased": Guess(False)}
    pool = {"global_pool": timm_names.global_pool_of(saved) or "avg"}
    Keys(only={"global_pool": ("avg",)}).read(pool, timm_names.SOURCE)
    return shape | timm_names.read_arguments(saved, TIMM_ARGUMENTS)


def _depths(arrays: CheckpointArrays) -> tuple[int, ...]:
    """Return how many blocks each stage has; blocks and stages are numbered without gaps."""
    found = [re.match(r"layer(\d+)\.(\d+)\.conv1\.weight$", name) for name in arrays]
    blocks = [(int(match[1]), int(match[2])) for match in found if match]
    stages = range(1, max((stage for stage, _ in blocks), default=0) + 1)
    return tuple(sum(stage == number for stage, _ in blocks) for number in stages)


def _refuse_other_blocks(arrays: CheckpointArrays, bottleneck: bool) -> None:
    """Refuse what has a ResNet's names but not its blocks: ResNeXt, wide ones, SE, group norm."""
    inside, grouped = arrays["layer1.0.conv2.weight"].shape[:2]
    expected = len(arrays["layer1.0.conv3.weight"]) // 4 if bottleneck else inside
    further = re.compile(r"layer\d+\.\d+\.(?!conv\d\.|bn\d\.|downsample\.)")
    unknown = next(filter(further.match, arrays), None)
    if unknown or (inside, grouped) != (expected, expected):
        what = f"{unknown!r}" if unknown else f"a first 3x3 convolution of {inside} x {grouped}"
        raise ValueError(f"the checkpoint has {what}, which no ResNet here has")
    if "bn1.running_mean" not in arrays:
        raise ValueError("the checkpoint has no 'bn1.running_mean'; a ResNet here has batch norm")


def _hugging_face_fields(saved: Description, arrays: CheckpointArrays) -> Fields:
    """Translate the fields of a Hugging Face ResNet's config.json."""
    if not saved:
        raise ValueError("a ResNet with Hugging Face's names needs the config.json beside it")
    return HUGGING_FACE_KEYS.read(saved, "config.json")


def _clip_fields(saved: Description, arrays: CheckpointArrays) -> Fields:
    """Read the shape of the network off the arrays; CLIP's heads have 64 channels each."""
    OPEN_CLIP_KEYS.read(saved, "open_clip_config.json's vision_cfg")
    depths = _depths(arrays)
    base_width = len(arrays["conv3.weight"])
    positions, channels = arrays["attnpool.positional_embedding"].shape
    return {
        "base_width": base_width,
        "depths": depths,
        "width": len(arrays["attnpool.c_proj.weight"]),
        "num_heads": max(channels // saved.get("head_width", 64), 1),
        "image_size": int(np.sqrt(positions - 1)) * 4 * 2 ** (len(depths) - 1),
        "resize": CLIP_RESIZE,
    }


TORCHVISION_LAYOUT = CheckpointLayout(
    recognised_by="layer1.0.conv1.weight",
    names=(*STEM_NAMES, *DOWNSAMPLE_NAMES),
    ignored=("fc.*", "*.num_batches_tracked"),
    fields=_torchvision_fields,
)
AVERAGING_LAYOUT = replace(
    TORCHVISION_LAYOUT,
    recognised_by="layer2.0.downsample.2.weight",
    names=(*STEM_NAMES, *AVERAGING_NAMES),
    fields=functools.partial(_torchvision_fields, averages=True),
)
HUGGING_FACE_LAYOUT = CheckpointLayout(
    recognised_by="embedder.embedder.convolution.weight",
    names=(
        (r"^conv1", "embedder.embedder.convolution"),
        (r"^bn1", "embedder.embedder.normalization"),
        # Stages and convolutions are counted from zero.
        *((rf"^layer{n + 1}\.(\d+)", rf"encoder.stages.{n}.layers.\1") for n in range(9)),
        *((rf"\.conv{n + 1}\.", f".layer.{n}.convolution.") for n in range(3)),
        *((rf"\.bn{n + 1}\.", f".layer.{n}.normalization.") for n in range(3)),
        (r"downsample\.conv", "shortcut.convolution"),
        (r"downsample\.norm", "shortcut.normalization"),
    ),
    spellings=((r"^resnet\.", ""),),
    ignored=("classifier.*", "*.num_batches_tracked"),
    fields=_hugging_face_fields,
)
CLIP_LAYOUT = CheckpointLayout(
    recognised_by="attnpool.c_proj.weight",
    names=DOWNSAMPLE_NAMES,
    spellings=((r"^visual\.", ""),),
    # The text tower and the scales of the whole model; DeCLIP's unused fully connected layer.
    ignored=(
        "*.num_batches_tracked",
        "fc.*",
        "transformer.*",
        "token_embedding.*",
        "positional_embedding",
        "ln_final.*",
        "text_projection",
        "logit_scale",
        "input_resolution",
        "context_length",
        "vocab_size",
    ),
    fields=_clip_fields,
)
