"""A sample of the sweep's cases; those of libraries that are not installed are skipped."""

import importlib
from collections.abc import Iterator

import pytest

MODULES = {
    "transformers": "transformers",
    "timm": "timm",
    "open_clip": "open_clip",
    "sentence_transformers": "sentence_transformers",
}
# What must come out, and the names of the cases, which `python -m tests.oracle.sweep` prints.
AGREE = {
    "transformers": (
        "Bert",
        "Roberta, type_vocab_size=1, layer_norm_eps=1e-05",
        "DistilBert",
        "MPNet",
        "Electra",
        "Albert, embedding_size=16",
        "ModernBert, pad_token_id=0, bos_token_id=1, cls_token_id=1, eos_token_id=2, "
        "sep_token_id=2, local_attention=4, num_hidden_layers=4",
        "DebertaV2, relative_attention=True, pos_att_type=['p2c', 'c2p'], position_buckets=8, "
        "norm_rel_ebd='layer_norm', share_att_key=True, position_biased_input=False",
        "DebertaV2",
        "ViT",
        "SiglipVision",
        "Dinov2, use_swiglu_ffn=True",
        "Dinov2WithRegisters, num_register_tokens=3",
        "ConvNext",
        "ConvNextV2",
        "ResNet",
        "CLIP, text_config={'eos_token_id': 2}",
        "Siglip",
        "ChineseCLIP",
    ),
    "timm": (
        "deit3_small_patch16_224",
        "vit_small_patch14_reg4_dinov2",
        "vit_base_patch16_siglip_224",
        "vit_little_patch16_reg1_gap_256",
        "resnet18d",
        "resnet14t",
        "convnext_atto",
        "convnextv2_atto",
        "vit_base_patch16_224, global_pool='avg', fc_norm=False",
        "vit_base_patch16_224, num_heads=4",
    ),
    "open_clip": ("ViT-S-16", "roberta-ViT-B-32"),
    "sentence_transformers": ("Bert, cls, Normalize", "MPNet, cls, 0_Transformer"),
}
REFUSED = {
    "transformers": ("VisionTextDualEncoder", "Blip", "Bert, is_decoder=True", "GPT2"),
    "timm": ("resnetaa50", "resnet50, output_stride=8", "vit_relpos_small_patch16_224"),
    "open_clip": ("coca_ViT-B-32",),
    "sentence_transformers": ("Bert, ['cls', 'mean']",),
}


def sample() -> Iterator[pytest.param]:
    for outcome, names in (("agree", AGREE), ("refused", REFUSED)):
        for library, of_library in names.items():
            for name in of_library:
                yield pytest.param(library, name, outcome, id=f"{library}: {name}"[:60])


@pytest.mark.oracle
@pytest.mark.parametrize(("library", "name", "outcome"), list(sample()))
def test_checkpoint_gives_the_originals_numbers_or_is_refused(
    library: str, name: str, outcome: str
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip(
        MODULES[library], reason=f"{library} is not installed (extra [oracle-sweep])"
    )
    comparing = importlib.import_module("tests.oracle.comparing")
    cases = importlib.import_module(f"tests.oracle.{library}_cases").cases()
    case = next(case for case in cases if case.name == name)
    verdict = comparing.judge(case)
    assert verdict.outcome == outcome, (verdict.error, verdict.message)
