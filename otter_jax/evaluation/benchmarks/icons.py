"""Icons that no run on `icons` trains on: zero-shot ranking of all captions of a split.

`icons_style` has icons of designers that are not among those trained on, of concepts that are;
`icons_concepts` has concepts that occur in no training caption. Icons of equal captions are one
class, so that equal captions count as right. The validation splits of both are for choosing
hyperparameters.
"""

from otter_jax.data.sources import open_source
from otter_jax.evaluation.benchmarks import own
from otter_jax.evaluation.benchmarks.labelled import ZeroShotSet

SPLITS = {
    "icons_style": "style_test",
    "icons_concepts": "concepts_test",
    "icons_style_validation": "style_validation",
    "icons_concepts_validation": "concepts_validation",
}


def load(name: str) -> ZeroShotSet:
    """Return one of `SPLITS`, by its name, as images whose classes are their captions."""
    source = open_source("icons", SPLITS[name])
    captions = [[source.first_caption(number)] for number in range(len(source))]
    return own.from_pairs(name, source, own.listed_classes(captions, name))
