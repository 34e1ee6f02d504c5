"""The pairs that a config names, and how they are divided: for a run, and for who looks at it."""

from pathlib import Path

from ml_collections import ConfigDict

from otter_jax.data.held_out import Split, hold_out
from otter_jax.data.kept_pairs import keep_listed
from otter_jax.data.sources import Source, open_source
from otter_jax.terminal import progress, say


def split_held_out(config: ConfigDict, source: Source) -> Split | None:
    """Return all pairs with those that `data.held_out` keeps from training apart, if it does."""
    share = config.data.held_out
    return hold_out(source, share, config.seed, progress) if share else None


def open_whole(config: ConfigDict, workdir: Path) -> Source:
    """Open those of `data.train` that `data.keep` names, those held out among them.

    Errors are those of `open_source` and `keep_listed`, and ValueError for data that are too bad.
    """
    try:
        source = open_source(
            config.data.train,
            cache_dir=workdir,
            every_caption=config.data.captions == "all",
            column=config.data.group,
            progress=progress,
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"config.data.train: {error}; without data of your own, try "
            "--config.data.train=open_clipart, which comes with a package"
        ) from error
    if not config.data.keep:
        return source
    return keep_listed(source, config.data.keep, progress, say)
