"""Folders of sentence-transformers: a transformer, its pooling and what follows."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.oracle.comparing import Case, Reference, randomise, texts
from tests.oracle.transformers_cases import TEXT, VOCABULARY, config_of

MODES = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ["cls", "mean"])
KINDS = ("Bert", "Roberta", "MPNet", "DistilBert", "Electra", "Albert")
OLD_KEYS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token",
            "max": "pooling_mode_max_tokens"}  # fmt: skip


def cases() -> Iterator[Case]:
    """Yield poolings, further layers, old spellings."""
    for mode in MODES:
        yield case("Bert", mode)
        yield case("Bert", mode, further="Normalize")
    for kind in KINDS:
        yield case(kind, "mean")
        yield case(kind, "cls", below="0_Transformer")
    for mode in OLD_KEYS:
        yield case("Bert", mode, old_keys=True)
    yield case("Bert", "mean", further="Dense")
    yield case("Bert", "mean", further="LayerNorm")


def case(
    kind: str, mode: object, further: str = "", below: str = "", old_keys: bool = False
) -> Case:
    """Return one folder's case."""
    parts = [kind, str(mode), further, below, "old keys" * old_keys]
    title = ", ".join(filter(None, parts))
    return Case(
        "sentence_transformers",
        title,
        lambda folder: write(folder, kind, mode, further, below, old_keys),
    )


def write(
    folder: Path, kind: str, mode: object, further: str, below: str, old_keys: bool
) -> Reference:
    """Save a model and return its features of tokens, before any normalisation."""
    source = folder / "source"
    model = getattr(transformers, f"{kind}Model")(config_of(kind, {}, TEXT))
    randomise(model)
    model.save_pretrained(source)
    words = {f"w{number}": number for number in range(VOCABULARY)} | {"[PAD]": VOCABULARY}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="w0"
    ).save_pretrained(source)
    transformer = modules.Transformer(str(source))
    pooling = modules.Pooling(TEXT["hidden_size"], pooling_mode=mode)
    layers = [transformer, pooling]
    if further:
        width = pooling.get_embedding_dimension()
        arguments = {"Dense": (width, 7), "LayerNorm": (width,)}.get(further, ())
        layers.append(getattr(modules, further)(*arguments))
    whole = SentenceTransformer(modules=layers, device="cpu").eval()
    whole.save(str(folder))
    shutil.rmtree(source)
    _respell(folder, mode, below, old_keys)
    padding = model.config.pad_token_id
    tokens, mask = texts(VOCABULARY, 12, padding=padding, last=2)
    features = {"input_ids": torch.from_numpy(tokens).long(),
                "attention_mask": torch.from_numpy(mask).long()}  # fmt: skip
    with torch.no_grad():
        pooled = pooling(transformer(features))["sentence_embedding"]
    return Reference(text=(tokens, mask, pooled.numpy()))


def _respell(folder: Path, mode: object, below: str, old_keys: bool) -> None:
    """Turn a new folder into one of an earlier version."""
    if old_keys:
        path = next(folder.glob("*_Pooling")) / "config.json"
        named = {key: name == mode for name, key in OLD_KEYS.items()}
        path.write_text(json.dumps({"word_embedding_dimension": TEXT["hidden_size"]} | named))
    if below:
        (folder / below).mkdir()
        for file in filter(Path.is_file, list(folder.iterdir())):
            if file.name not in ("modules.json", "config_sentence_transformers.json", "README.md"):
                file.rename(folder / below / file.name)
        listed = json.loads((folder / "modules.json").read_text())
        listed[0]["path"] = below
        (folder / "modules.json").write_text(json.dumps(listed))
