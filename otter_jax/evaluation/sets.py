"""The sets a run is evaluated on: pairs give retrieval, labelled images give zero-shot ranking."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from otter_jax.data import folders, sources, storage
from otter_jax.data.caption_checks import are_lists_of_lines, sample_records
from otter_jax.data.held_out import Split
from otter_jax.data.sources import Source, open_source
from otter_jax.data.specs import spec_of_path
from otter_jax.data.tables import open_tables
from otter_jax.data.templates import DEFAULT_TEMPLATE, read_templates
from otter_jax.embedding.encoder import Encoder
from otter_jax.embedding.features import FeatureStore
from otter_jax.evaluation import benchmarks
from otter_jax.evaluation.answers import Answers
from otter_jax.evaluation.benchmarks import own
from otter_jax.evaluation.labelled_set import LabelledSet
from otter_jax.evaluation.pair_set import PairSet, pairs_of_source, pairs_of_tables
from otter_jax.evaluation.probe_set import OPTIONS, ProbeSet
from otter_jax.evaluation.specs import EvaluationSpec
from otter_jax.terminal import say

SetMetrics = dict[str, float]
HELD_OUT = "held_out"  # What results call the pairs of data.held_out.
WITHOUT_PATH = ("open_clipart", *benchmarks.WITHOUT_PATH)  # They come with packages.


class EvaluationSet(Protocol):
    """Anything a dual encoder can be measured on."""

    name: str

    def evaluate(self, encoder: Encoder, store: FeatureStore) -> SetMetrics:
        """Return `{metric: value}` of the encoder as it is now."""
        ...

    def chance(self) -> SetMetrics:
        """Return the same metrics of a random ranking."""
        ...

    def answers(self, encoder: Encoder, store: FeatureStore, count: int) -> Answers:
        """Return what the encoder says of `count` images, half of them hits if there are enough."""
        ...

    def contents(self) -> dict[str, Any]:
        """Return what the set consists of, and what was left out and why, for data.json."""
        ...


def open_sets(
    specs: list[str],
    *,
    image_size: int,
    template: str = DEFAULT_TEMPLATE,
    names: str = "joined",
) -> Iterator[EvaluationSet]:
    """Yield the sets that config.evaluate.sets names.

    Args:
        specs: labelled sets (benchmarks/), pairs by their data SPEC, `probe:` in front of a folder.
        image_size: the model's, in pixels.
        template: prompts, as `templates.read_templates` takes them.
        names: how several names of a class make one embedding; see LabelledSet.

    Raises:
        ValueError: for a name that means nothing, listing what there is, or is given twice.
        FileNotFoundError: for a path at which there is nothing.
    """
    _refuse_repeated(specs)
    templates = read_templates(template)
    for text in specs:
        if text.startswith("probe:"):
            yield ProbeSet.open(text)
        elif isinstance(opened := open_one(text, image_size), benchmarks.ZeroShotSet):
            yield LabelledSet(opened, templates, names)
        else:
            yield opened


def held_out_set(split: Split, template: str = DEFAULT_TEMPLATE) -> EvaluationSet:
    """Return pairs that were held out of training as a set, `held_out`.

    Where captions are class names, images are classified among these; else images and captions are
    retrieved. `template` is as in `open_sets`.
    """
    if not split.class_names:
        return pairs_of_source(HELD_OUT, split.held_out)
    labels = [own.split_labels(name) for name in split.class_names]
    classes = own.listed_classes(labels, split.held_out.name)
    labelled = own.from_pairs(HELD_OUT, split.held_out, classes)
    return LabelledSet(labelled, read_templates(template))


def refuse_unknown_sets(specs: Sequence[str]) -> None:
    """Refuse early, opening nothing: names that mean nothing, local paths with nothing there.

    Raises:
        ValueError, FileNotFoundError: as `open_sets`, which looks at the contents as well.
    """
    texts = [each for each in specs if isinstance(each, str)]  # Others are no SPECs at all.
    _refuse_repeated(texts)
    for text in texts:
        plain = text.removeprefix("probe:")
        spec = EvaluationSpec.parse(plain, () if plain == text else tuple(OPTIONS))
        _refuse_unknown(spec)
        if spec.kind in WITHOUT_PATH or spec.kind == "tfds" or storage.is_remote(spec.path):
            continue
        paths = [spec.path]
        if spec.kind == "webdataset":
            paths = storage.find_files(spec.path, ".tar")
        elif spec.kind == "csv":
            paths = storage.find_files(spec.path, "")
        if not any(Path(path).exists() for path in paths):
            raise FileNotFoundError(f"config.evaluate.sets: {text}: there is no {spec.path}")


def _refuse_repeated(specs: Sequence[str]) -> None:
    """Refuse a set that is given twice (ValueError): its results would stand under one name."""
    if repeated := [spec for spec, times in Counter(specs).items() if times > 1]:
        raise ValueError(f"config.evaluate.sets names {repeated[0]!r} twice")


def _refuse_unknown(spec: EvaluationSpec) -> None:
    """Refuse a kind that does not exist, or that needs a path and has none (ValueError)."""
    paths = [kind for kind in (*benchmarks.BENCHMARKS, "webdataset") if kind not in WITHOUT_PATH]
    known = spec.kind in paths or sources.is_known(spec.kind)
    if spec.kind in WITHOUT_PATH or (spec.path and known):
        return
    if meant := spec_of_path(spec.name):
        raise ValueError(f"config.evaluate.sets: unknown set {spec.name!r}; write {meant}")
    known = [*WITHOUT_PATH, *(f"{kind}:PATH" for kind in paths)]
    raise ValueError(
        f"config.evaluate.sets: unknown set {spec.name!r}; choose from {', '.join(known)}, "
        "tfds:NAME:SPLIT or probe:folder:PATH"
    )


def open_one(text: str, image_size: int) -> benchmarks.ZeroShotSet | PairSet:
    """Return labelled images or pairs; arguments and errors as in `open_sets`."""
    spec = EvaluationSpec.parse(text)
    _refuse_unknown(spec)
    has_classes = "classes" in spec.options
    if spec.kind == "csv" and not has_classes and own.holds_captions(spec):
        return pairs_of_tables(text, open_tables(spec))
    if spec.kind == "folder" and not has_classes and Path(spec.path).is_dir():
        if _is_captioned(spec):
            return pairs_of_source(text, open_source(spec.source))
        if "captions" not in spec.options:
            folders.refuse_names_of_no_class(Path(spec.path), text)
    if spec.kind in benchmarks.BENCHMARKS:
        return benchmarks.load(spec, image_size)
    source, classes = _open_pairs(spec), spec.class_list()
    return own.from_pairs(text, source, classes) if classes else pairs_of_source(text, source)


def _open_pairs(spec: EvaluationSpec) -> Source:
    """Open pairs, those of clip-benchmark's shards with a caption a line."""
    source = open_source(spec.source, split="heldout")
    if spec.kind != "webdataset" or spec.options:
        return source
    if not are_lists_of_lines(sample_records(source)):
        return source
    say(f"{spec.name}: the lines of a text are taken for captions of their own")
    return open_source(f"{spec.source}?captions=lines")


def _is_captioned(spec: EvaluationSpec) -> bool:
    """Return whether the captions of a folder lie beside its images."""
    said = spec.options.get("captions")
    return said == "files" if said else folders.has_captions(Path(spec.path))
