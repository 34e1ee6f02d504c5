"""The held-out icons as labelled sets: equal captions are one class."""

import pytest

from otter_jax.data.images import decode
from otter_jax.data.sources import open_source
from otter_jax.evaluation.benchmarks import ICON_SPLITS
from otter_jax.evaluation.sets import open_sets, refuse_unknown_sets


@pytest.mark.parametrize(("name", "split"), ICON_SPLITS.items())
def test_each_icon_has_its_caption_as_its_class(name: str, split: str) -> None:
    (found,) = open_sets([name], image_size=32)
    source, labelled = open_source("icons", split), found.labelled
    assert found.name == name and len(labelled.images) == len(source)
    captions = [source.first_caption(number) for number in range(len(source))]
    assert len(labelled.class_names) == len(set(captions)) < len(captions)
    for number in range(0, len(source), 97):
        (label,) = labelled.labels[number]
        assert labelled.class_names[label] == (captions[number],)
        assert (labelled.images.decode(number) == decode(source[number].image)).all()
    refuse_unknown_sets([name])
