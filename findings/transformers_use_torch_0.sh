#!/usr/bin/env bash
# USE_TORCH=0 no longer keeps transformers from importing torch.
#
# Library:   transformers 5.24.0, torch 2.13.0.
# Expected:  with USE_TORCH=0, as documented for earlier versions, a program that needs configurations
#            and tokenizers only does not load torch.
# Happens:   torch is imported all the same, by the module that reads a model's config.
# Matters:   every JAX program that takes tokenizers and configs from transformers: seconds at each
#            start, and a second set of threads and GPU libraries in the process.
# Seen on 2026-11-28:
#   torch imported: by transformers False, with BertConfig True
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile transformers==5.24.0 torch==2.13.0

USE_TORCH=0 USE_JAX=1 HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'EOF'
import sys

import transformers

before = "torch" in sys.modules
from transformers import BertConfig

BertConfig()
print(f"torch imported: by transformers {before}, with BertConfig {'torch' in sys.modules}")
assert not before and "torch" in sys.modules
EOF
