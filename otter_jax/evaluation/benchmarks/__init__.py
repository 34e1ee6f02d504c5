"""Labelled sets that a zero-shot classifier is measured on: built-in, official releases, one's own.

A set is named by a SPEC: a name, or `kind:PATH`, with `?classes=FILE` for a class list of one's own
(see class_lists.py).
"""

from collections.abc import Callable
from pathlib import Path

from otter_jax.evaluation.benchmarks.labelled import ZeroShotSet
from otter_jax.evaluation.specs import EvaluationSpec

__all__ = ["BENCHMARKS", "WITHOUT_PATH", "ZeroShotSet", "load"]


def _openmoji(spec: EvaluationSpec, image_size: int) -> ZeroShotSet:
    from otter_jax.evaluation.benchmarks import openmoji

    return openmoji.load(image_size)


def _icons(spec: EvaluationSpec, image_size: int) -> ZeroShotSet:
    from otter_jax.evaluation.benchmarks import icons

    return icons.load(spec.kind, ICON_SPLITS[spec.kind])


def _open_images(spec: EvaluationSpec, image_size: int) -> ZeroShotSet:
    from otter_jax.evaluation.benchmarks import open_images

    return open_images.load(spec.name, Path(spec.path), spec.class_list())


def _imagenet10k(spec: EvaluationSpec, image_size: int) -> ZeroShotSet:
    from otter_jax.evaluation.benchmarks import imagenet10k

    return imagenet10k.load(spec.name, Path(spec.path))


def _imagenet(spec: EvaluationSpec, image_size: int) -> ZeroShotSet:
    from otter_jax.evaluation.benchmarks import imagenet

    return imagenet.load(spec.name, Path(spec.path), spec.class_list())


def _imagenet22k(spec: EvaluationSpec, image_size: int) -> ZeroShotSet:
    from otter_jax.evaluation.benchmarks import imagenet

    return imagenet.load_22k(spec.name, Path(spec.path))


def _folder(spec: EvaluationSpec, image_size: int) -> ZeroShotSet:
    from otter_jax.evaluation.benchmarks import own

    return own.load_folder(spec.name, Path(spec.path), spec.class_list())


def _csv(spec: EvaluationSpec, image_size: int) -> ZeroShotSet:
    from otter_jax.evaluation.benchmarks import own

    return own.load_csv(spec.name, Path(spec.path), spec.class_list(), spec.data_options)


# Evaluation set -> which split of the SPEC `icons` it is.
ICON_SPLITS = {
    "icons_style": "style_test",
    "icons_concepts": "concepts_test",
    "icons_style_validation": "style_validation",
    "icons_concepts_validation": "concepts_validation",
}
WITHOUT_PATH = ("openmoji", *ICON_SPLITS)  # They come with packages.
BENCHMARKS: dict[str, Callable[[EvaluationSpec, int], ZeroShotSet]] = {
    "openmoji": _openmoji,
    **dict.fromkeys(ICON_SPLITS, _icons),
    "open_images": _open_images,
    "imagenet10k": _imagenet10k,
    "imagenet1k": _imagenet,
    "imagenet21k": _imagenet,
    "imagenet22k": _imagenet22k,
    "folder": _folder,
    "csv": _csv,
}


def load(spec: EvaluationSpec | str, image_size: int) -> ZeroShotSet:
    """Return a labelled set: its images, labels and class names.

    Args:
        spec: which one.
        image_size: the model's, in pixels; only for sets that are drawn.

    Raises:
        ValueError: for an unknown kind, and for files that are not in the expected format.
        FileNotFoundError: for files that are not there, naming them.
        ModuleNotFoundError: if packages are missing; the message has the pip command.
    """
    spec = EvaluationSpec.parse(spec) if isinstance(spec, str) else spec
    if spec.kind not in BENCHMARKS:
        raise ValueError(f"there is no benchmark {spec.kind!r}; there are: {', '.join(BENCHMARKS)}")
    if not spec.path and spec.kind not in WITHOUT_PATH:
        raise ValueError(f"{spec.kind}: write {spec.kind}:PATH, with the path of its files")
    return BENCHMARKS[spec.kind](spec, image_size)
