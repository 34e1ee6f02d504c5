"""Which columns of a table hold the image and the captions, and what a cell of captions says."""

import ast
import contextlib
import json
import re
from collections.abc import Mapping, Sequence

from otter_jax.data.records import clean_captions

# Customary names, compared without regard to case; the first that there is counts. The last ones
# are those of img2dataset's Parquet.
IMAGE_NAMES = ("image", "image_path", "img", "filepath", "file_path", "file", "file_name",
               "filename", "path", "jpg", "png", "webp")  # fmt: skip
CAPTION_NAMES = ("caption", "captions", "text", "texts", "title", "sentence", "sentences",
                 "description")  # fmt: skip
LABEL_NAMES = ("label", "labels", "class", "classes", "class_name", "label_name", "category")
ADDRESS_NAMES = {"url", "urls", "image_url", "img_url", "link"}

_ESCAPE = r"\\[\\'\"abfnrtvxuU0-7]"
_STRING = rf"(?:'(?:[^'\\]|{_ESCAPE})*+'|\"(?:[^\"\\]|{_ESCAPE})*+\")"
# As str() writes a list or tuple of strings, and a NumPy array of strings: without commas.
_PYTHON_LIST = re.compile(
    rf"\[\s*{_STRING}(?:(?:\s*,\s*|\s+){_STRING})*+\s*\]"
    rf"|\({_STRING}(?:,|(?:,\s*{_STRING})++)\)",
    re.DOTALL,
)


def choose_columns(
    names: Sequence[str],
    options: Mapping[str, str],
    origin: str,
    caption_names: Sequence[str] = CAPTION_NAMES,
) -> tuple[str, list[str]]:
    """Choose the image's column and the captions'.

    Args:
        names: The table's columns.
        options: `image`, a column; `caption`, one or several with commas between them.
        origin: What to call the table in an error.
        caption_names: Customary names of what the captions' columns hold.

    Raises:
        ValueError: If there is no such column.
    """
    image = choose_column(names, options.get("image", ""), IMAGE_NAMES, f"{origin}: image", "image")
    captions = [
        choose_column(names, wanted, caption_names, f"{origin}: caption", "caption")
        for wanted in options.get("caption", "").split(",")
    ]
    return image, captions


def choose_column(
    names: Sequence[str], wanted: str, customary: Sequence[str], what: str, option: str
) -> str:
    """Return the column that is wanted, or the first that has a customary name.

    Args:
        names: All columns; one without a name, "", is never meant.
        wanted: A column; "": one of the customary ones.
        customary: Names to look for, in lower case.
        what: What the column holds, for an error.
        option: The option that names it, for an error.

    Raises:
        ValueError: If it does not exist, listing the columns and how to name one.
    """
    if wanted and wanted in names:
        return wanted
    if not wanted and (found := customary_column(names, customary)):
        return found
    there = ", ".join(repr(name[:_SHOWN]) for name in names[:_MOST_SHOWN]) or "no columns"
    if len(names) > _MOST_SHOWN:
        there += f" and {len(names) - _MOST_SHOWN} more"
    missing = f"there is no {wanted!r}" if wanted else f"none of {', '.join(customary)} is"
    hint = f"name it by adding ?{option}=COLUMN to the SPEC"
    if option == "image" and not ADDRESS_NAMES.isdisjoint(name.lower() for name in names):
        hint += "; images behind addresses must be downloaded first, for example by img2dataset"
    raise ValueError(f"{what} column not found: {missing} among {there}; {hint}")


_MOST_SHOWN = 50  # Columns in an error, and
_SHOWN = 80  # characters of their names: a file of another kind may seem to have any.


def customary_column(names: Sequence[str], customary: Sequence[str]) -> str:
    """Return the first column that has a customary name, "" if there is none."""
    by_lower_case = {name.lower(): name for name in reversed(names)}
    return next((by_lower_case[name] for name in customary if name in by_lower_case), "")


def captions_of_cell(cell: object) -> tuple[str, ...]:
    """Return the captions in a cell of a table, cleaned, each once.

    Args:
        cell: Text, or a list of texts; or text that holds such a list as json has it, or as str()
            writes it in Python, which is what pandas puts into a csv file. Anything else has none.
    """
    if not isinstance(cell, str):
        return clean_captions(cell)
    caption = clean_captions(cell)
    if caption and caption[0].startswith(("[", "(")):
        listed = _listed(cell)
        return caption if listed is None else listed
    return caption


def _listed(cell: str) -> tuple[str, ...] | None:
    """Return the captions of a list that is written as text; None where it is none."""
    with contextlib.suppress(ValueError, RecursionError):
        listed = json.loads(cell)
        if isinstance(listed, list) and all(isinstance(text, str) for text in listed):
            return clean_captions(listed)
    if _PYTHON_LIST.fullmatch(cell.strip()):
        with contextlib.suppress(ValueError, SyntaxError):
            return clean_captions(list(map(ast.literal_eval, re.findall(_STRING, cell, re.DOTALL))))
    return None
