#!/usr/bin/env bash
# datasets' to_parquet writes a data set of images without the images.
#
# Library:   datasets 5.2.0.
# Expected:  the Parquet file holds the pictures, as the file of `save_to_disk` does.
# Happens:   pictures that were given by path (a cast to Image(), load_dataset("imagefolder")) are
#            written as {bytes: null, path: "/home/..."}: paths of the machine it ran on. On that
#            machine everything seems right, since the paths are followed; elsewhere the pairs have
#            captions only.
# Matters:   moving image-text pairs to a cluster or a colleague as a Parquet file.
# Seen on 2026-11-28:
#   to_parquet: bytes None, path of this machine: True; save_to_disk: 516 bytes, path 0.png
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile datasets==5.2.0 pillow==13.0.0 pyarrow==26.0.1

HF_HUB_OFFLINE=1 HF_HOME="$work/home" "$work/venv/bin/python" - "$work" <<'EOF'
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

datasets.disable_progress_bars()
folder = Path(sys.argv[1]) / "pictures"
folder.mkdir()
paths = [str(folder / f"{number}.png") for number in range(3)]
for number, path in enumerate(paths):
    Image.linear_gradient("L").rotate(90 * number).save(path)

pairs = datasets.Dataset.from_dict({"image": paths, "caption": ["up", "left", "down"]})
pairs = pairs.cast_column("image", datasets.Image())
pairs.to_parquet(folder / "pairs.parquet")
stored = pq.read_table(folder / "pairs.parquet")["image"].to_pylist()[0]
pairs.save_to_disk(str(folder / "saved"))
stream = next((folder / "saved").glob("*.arrow"))
with pa.memory_map(str(stream)) as file:
    saved = pa.ipc.open_stream(file).read_all()["image"].to_pylist()[0]
print(f'to_parquet: bytes {stored["bytes"]}, path of this machine:', end=" ")
print(f'{stored["path"] == paths[0]}; save_to_disk: {len(saved["bytes"])} bytes,', end=" ")
print(f'path {saved["path"]}')
assert stored == {"bytes": None, "path": paths[0]}
assert saved["bytes"] == Path(paths[0]).read_bytes()
EOF
