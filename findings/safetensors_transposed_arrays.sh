#!/usr/bin/env bash
# safetensors writes a transposed NumPy array in the wrong order, and says nothing.
#
# Library:   safetensors 0.8.0 with numpy 2.4.6.
# Expected:  save_file, then load_file, gives back the array.
# Happens:   safetensors.numpy.save_file takes an array's memory as it lies. A transposed kernel is
#            a view with other strides: its shape is written right and its numbers in the order of
#            the array it is a view of. Nothing is refused.
# Matters:   converting weights between JAX and PyTorch is transposing kernels: `kernel.T`,
#            `transpose(3, 2, 0, 1)`. For a square kernel even the norm and the mean are right.
#            np.ascontiguousarray before saving is what helps.
# Seen on 2026-11-28:
#   saved [[0, 3], [1, 4], [2, 5]], loaded [[0, 1], [2, 3], [4, 5]]
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile safetensors==0.8.0 numpy==2.4.6

"$work/venv/bin/python" - "$work/model.safetensors" <<'EOF'
import sys

import numpy as np
from safetensors.numpy import load_file, save_file

kernel = np.arange(6, dtype=np.float32).reshape(2, 3)  # [in, out], as Flax has it.
save_file({"weight": kernel.T}, sys.argv[1])
loaded = load_file(sys.argv[1])["weight"]
print(f"saved {kernel.T.astype(int).tolist()}, loaded {loaded.astype(int).tolist()}")
assert loaded.shape == kernel.T.shape
assert loaded.tolist() == [[0, 1], [2, 3], [4, 5]]

save_file({"weight": np.ascontiguousarray(kernel.T)}, sys.argv[1])
np.testing.assert_array_equal(load_file(sys.argv[1])["weight"], kernel.T)
EOF
