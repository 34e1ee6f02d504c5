"""Icons that no run on `icons` trains on: zero-shot ranking of all captions of a split.

`icons_style` has icons of designers that are not among those trained on, of concepts that are;
`icons_concepts` has concepts that occur in no training caption. Icons of equal captions are one
class, so that equal captions count as right. The validation splits of both are for choosing
hyperparameters.
"""

from otter_jax.data.sources import open_source
from otter_jax.evaluation.benchmarks import own
from otter_jax.evaluation.benchmarks.labelled import ZeroShotSet


def load(name: str, split: str) -> ZeroShotSet:
    """Return a split of `icons` as images whose classes are their captions.

    Args:
        name: what the set is called.
        split: of the SPEC.
    """
    source = open_source("icons", split)
    captions = [[source.first_caption(number)] for number in range(len(source))]
    return own.from_pairs(name, source, own.listed_classes(captions, name))
