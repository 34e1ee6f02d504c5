"""Which columns of a table, or features of a data set, hold the image and the captions."""

from collections.abc import Mapping, Sequence

# Customary names, compared without regard to case; the first that there is counts.
IMAGE_NAMES = ("image", "image_path", "img", "filepath", "file_path", "file", "file_name",
               "filename", "path")  # fmt: skip
CAPTION_NAMES = ("caption", "captions", "text", "texts", "title", "sentence", "sentences",
                 "description")  # fmt: skip
LABEL_NAMES = ("label", "labels", "class", "classes", "class_name", "label_name", "category")
ADDRESS_NAMES = {"url", "urls", "image_url", "img_url", "link"}


def choose_columns(
    names: Sequence[str], options: Mapping[str, str], origin: str
) -> tuple[str, list[str]]:
    """Choose the image's column and the captions'.

    Args:
        names: The table's columns.
        options: `image`, a column; `caption`, one or several with commas between them.
        origin: What to call the table in an error.

    Raises:
        ValueError: If there is no such column.
    """
    image = choose_column(names, options.get("image", ""), IMAGE_NAMES, f"{origin}: image", "image")
    captions = [
        choose_column(names, wanted, CAPTION_NAMES, f"{origin}: caption", "caption")
        for wanted in options.get("caption", "").split(",")
    ]
    return image, captions


def choose_column(
    names: Sequence[str], wanted: str, customary: Sequence[str], what: str, option: str
) -> str:
    """Return the column that is wanted, or the first that has a customary name.

    Args:
        names: All columns.
        wanted: A column; "": one of the customary ones.
        customary: Names to look for, in lower case.
        what: What the column holds, for an error.
        option: The option that names it, for an error.

    Raises:
        ValueError: If it does not exist, listing the columns and how to name one.
    """
    by_lower_case = {name.lower(): name for name in reversed(names)}
    if wanted in names:
        return wanted
    for name in () if wanted else customary:
        if name in by_lower_case:
            return by_lower_case[name]
    there = ", ".join(map(repr, names)) or "no columns"
    missing = f"there is no {wanted!r}" if wanted else f"none of {', '.join(customary)} is"
    hint = f"name it by adding ?{option}=COLUMN to the SPEC"
    if option == "image" and not ADDRESS_NAMES.isdisjoint(by_lower_case):
        hint += "; images behind addresses must be downloaded first, for example by img2dataset"
    raise ValueError(f"{what} column not found: {missing} among {there}; {hint}")
