#!/usr/bin/env bash
# AutoTokenizer makes a tokenizer from a folder that has none, and all captions become alike.
#
# Library:   transformers 5.24.0.
# Expected:  from_pretrained of a folder without vocabulary files raises.
# Happens:   where config.json names a model type, the class of it is built with an empty
#            vocabulary: two special tokens for CLIP, five for BERT and RoBERTa. Every character or
#            word is "unknown" (CLIP, BERT) or dropped (RoBERTa), so texts of equal length, or all
#            texts, are the same ids, without a warning.
# Matters:   a model saved without its tokenizer beside it trains, evaluates and serves on texts
#            that say nothing; zero-shot scores are chance, and the weights are blamed.
# Seen on 2026-11-28:
#   clip: CLIPTokenizer of 2 tokens, "a cat" and "a dog" alike
#   bert: BertTokenizer of 5 tokens, "a cat" and "a dog" alike
#   roberta: RobertaTokenizer of 5 tokens, "a cat" and "a dog" alike
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile transformers==5.24.0

HF_HUB_OFFLINE=1 "$work/venv/bin/python" - "$work" <<'EOF'
import json
import sys
from pathlib import Path

from transformers import AutoTokenizer

for model_type, size in (("clip", 2), ("bert", 5), ("roberta", 5)):
    folder = Path(sys.argv[1]) / model_type
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    cat, dog = (tokenizer(text)["input_ids"] for text in ("a cat", "a dog"))
    print(f"{model_type}: {type(tokenizer).__name__} of {len(tokenizer)} tokens,", end=" ")
    print(f'"a cat" and "a dog" {"alike" if cat == dog else "differ"}')
    assert len(tokenizer) == size and cat == dog
EOF
