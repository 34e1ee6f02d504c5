"""Prompts around a class name: one, CLIP's 80, or the lines of a file."""

from collections.abc import Sequence
from pathlib import Path

from otter_jax.data.text_files import numbered_lines

_SHOWN = 80  # Characters of a template in an error.
DEFAULT_TEMPLATE = "a photo of {}."

# The prompts that CLIP's authors published for ImageNet (Radford et al. 2021, section 3.1.4):
# these patterns with "a" and with "the", and those that have no such pair.
_WITH_ARTICLE = (
    "a bad photo of {article} {{}}.",
    "a sculpture of {article} {{}}.",
    "a photo of {article} hard to see {{}}.",
    "a low resolution photo of {article} {{}}.",
    "a rendering of {article} {{}}.",
    "graffiti of {article} {{}}.",
    "a cropped photo of {article} {{}}.",
    "a tattoo of {article} {{}}.",
    "{article} embroidered {{}}.",
    "a bright photo of {article} {{}}.",
    "a photo of {article} clean {{}}.",
    "a photo of {article} dirty {{}}.",
    "a dark photo of {article} {{}}.",
    "a drawing of {article} {{}}.",
    "{article} plastic {{}}.",
    "a photo of {article} cool {{}}.",
    "a close-up photo of {article} {{}}.",
    "a black and white photo of {article} {{}}.",
    "a painting of {article} {{}}.",
    "a pixelated photo of {article} {{}}.",
    "a jpeg corrupted photo of {article} {{}}.",
    "a blurry photo of {article} {{}}.",
    "a photo of {article} {{}}.",
    "a good photo of {article} {{}}.",
    "{article} {{}} in a video game.",
    "a doodle of {article} {{}}.",
    "{article} origami {{}}.",
    "a sketch of {article} {{}}.",
    "{article} toy {{}}.",
    "a rendition of {article} {{}}.",
    "a photo of {article} large {{}}.",
    "a photo of {article} nice {{}}.",
    "a photo of {article} weird {{}}.",
    "{article} cartoon {{}}.",
    "art of {article} {{}}.",
    "{article} plushie {{}}.",
    "a photo of {article} small {{}}.",
    "itap of {article} {{}}.",  # Short for "I took a picture".
)
_OTHERS = (
    "a photo of many {}.",
    "a photo of my {}.",
    "a photo of one {}.",
    "itap of my {}.",
)
CLIP_TEMPLATES = (
    *(p.format(article=article) for p in _WITH_ARTICLE for article in ("a", "the")),
    *_OTHERS,
)


def read_templates(value: str | Sequence[str]) -> tuple[str, ...]:
    """Return the templates that `config.evaluate.template` stands for.

    Args:
        value: `clip80`, a template, a text file of one template a line, or several templates.

    Raises:
        ValueError: for a template without {}, or none at all, and for a file that is not UTF-8.
        FileNotFoundError: for a value that looks like a file that is not there.
    """
    if not isinstance(value, str):
        templates = tuple(value)
    elif value == "clip80":
        templates = CLIP_TEMPLATES
    elif "{}" in value:
        templates = (value,)
    elif Path(value).expanduser().is_file():
        return _read_file(Path(value).expanduser())
    elif value.endswith(".txt"):
        raise FileNotFoundError(f"there is no file of templates at {value}")
    else:
        templates = (value,)
    check_templates(templates)
    return templates


def _read_file(path: Path) -> tuple[str, ...]:
    """Return the templates of a file, one a line; errors are those of `read_templates`."""
    lines = dict(numbered_lines(path))
    for number, line in lines.items():
        check_templates([line.strip()], f"{path}: line {number}: ")
    templates = tuple(line.strip() for line in lines.values())
    check_templates(templates, f"{path}: ")
    return templates


def check_templates(templates: Sequence[str], where: str = "") -> None:
    """Refuse an empty list, and a template that has no place for the name.

    Args:
        templates: The templates.
        where: What to put in front of an error.

    Raises:
        ValueError: With the first template that is none.
    """
    if not templates:
        raise ValueError(f"{where}there is no template: one would be 'a photo of {{}}.'")
    for template in templates:
        if "{}" not in template:
            raise ValueError(
                f"{where}the template {template[:_SHOWN]!r} needs a {{}} for the class name; right "
                "would be a template such as 'a photo of {}.', clip80, or the path of a text file"
            )
