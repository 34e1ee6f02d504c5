"""CLIP's prompts, and what a config may name."""

from pathlib import Path

import pytest

from otter_jax.data import templates


def test_clip_has_eighty_distinct_templates() -> None:
    assert len(set(templates.CLIP_TEMPLATES)) == len(templates.CLIP_TEMPLATES) == 80
    assert all(template.count("{}") == 1 for template in templates.CLIP_TEMPLATES)
    for known in ("itap of my {}.", "the {} in a video game.", "a jpeg corrupted photo of the {}.",
                  "a photo of many {}.", "a origami {}.", "art of the {}."):  # fmt: skip
        assert known in templates.CLIP_TEMPLATES


def test_what_a_config_may_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("a drawing of {}\n\n  {} on white \n")
    assert templates.read_templates(str(path)) == ("a drawing of {}", "{} on white")
    assert templates.read_templates("a photo of {}.") == ("a photo of {}.",)
    assert templates.read_templates("clip80") == templates.CLIP_TEMPLATES
    assert templates.read_templates(["{}", "a {}"]) == ("{}", "a {}")


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("a photo", ValueError, r"'a photo' needs a \{\} for the class name"),
        (("{}", "photo"), ValueError, r"'photo' needs a \{\}"),
        ((), ValueError, "there is no template"),
        ("nowhere.txt", FileNotFoundError, "no file of templates at nowhere.txt"),
    ],
)
def test_bad_templates_are_refused(value: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        templates.read_templates(value)


def test_a_file_without_templates_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.write_text("\n")
    with pytest.raises(ValueError, match="there is no template"):
        templates.read_templates(str(path))
