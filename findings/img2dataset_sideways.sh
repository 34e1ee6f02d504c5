#!/usr/bin/env bash
# img2dataset stores telephones' photographs lying on their side.
#
# Library:   img2dataset 1.47.0 (with opencv-python-headless 4.14.0.94).
# Expected:  a picture is stored as browsers show it.
# Happens:   it is decoded without its EXIF orientation, and encoded again without EXIF. A portrait
#            taken by a telephone becomes a landscape with the sky at its side, and nothing in the
#            picture tells any more; only the JSON beside it has "Image Orientation". So for all
#            data sets that were downloaded with it, unless with disable_all_reencoding.
# Matters:   "a tower at dusk" is trained on a tower that lies. Towers learn it both ways, and at
#            evaluation, on upright pictures, nobody sees what it has cost.
# Seen on 2026-11-28:
#   as shown: 400 x 600, bright at the top; stored: 384 x 256, bright at the left, EXIF kept: False
#   the JSON says {"Image Orientation": "Rotated 90 CW"}
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  img2dataset==1.47.0 opencv-python-headless==4.14.0.94

cat >"$work/find.py" <<'EOF'
import functools
import http.server
import json
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
from img2dataset import download

ORIENTATION_6 = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def halves(image):
    """Return the mean brightness of the top, bottom, left and right half."""
    rows, columns = image.shape[0] // 2, image.shape[1] // 2
    return [round(float(part.mean())) for part in
            (image[:rows], image[rows:], image[:, :columns], image[:, columns:])]


def main(work):
    web = work / "web"
    web.mkdir()
    sensor = np.zeros((400, 600, 3), np.uint8)  # As the sensor lies: turned by 90 degrees.
    sensor[:, :300] = 255
    encoded = cv2.imencode(".jpg", sensor)[1].tobytes()
    length = (len(ORIENTATION_6) + 2).to_bytes(2, "big")
    photo = encoded[:2] + b"\xff\xe1" + length + ORIENTATION_6 + encoded[2:]
    (web / "tower.jpg").write_bytes(photo)

    handler = functools.partial(Quiet, directory=web)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    urls = work / "urls.csv"
    urls.write_text(f"url,caption\nhttp://127.0.0.1:{server.server_port}/tower.jpg,a tower\n")
    download(
        url_list=str(urls), input_format="csv", caption_col="caption", image_size=256,
        resize_mode="keep_ratio", output_folder=str(work / "out"), output_format="files",
        processes_count=1, thread_count=1,
    )
    server.shutdown()

    shown = cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR)
    stored_bytes = next((work / "out").glob("00000/*.jpg")).read_bytes()
    stored = cv2.imdecode(np.frombuffer(stored_bytes, np.uint8), cv2.IMREAD_COLOR)
    exif = json.loads(json.loads(next((work / "out").glob("00000/*.json")).read_text())["exif"])
    kept = b"Exif" in stored_bytes
    print(f"as shown: {shown.shape[1]} x {shown.shape[0]}, bright at the top;", end=" ")
    print(f"stored: {stored.shape[1]} x {stored.shape[0]}, bright at the left, EXIF kept: {kept}")
    print("the JSON says", json.dumps(exif))
    assert shown.shape[:2] == (600, 400) and halves(shown)[:2] == [255, 0]
    assert stored.shape[:2] == (256, 384) and not kept
    top, bottom, left, right = halves(stored)
    assert left > 250 and right < 5 and abs(top - bottom) < 5
    assert exif == {"Image Orientation": "Rotated 90 CW"}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
EOF
NO_ALBUMENTATIONS_UPDATE=1 "$work/venv/bin/python" "$work/find.py" "$work"
