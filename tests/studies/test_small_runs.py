"""Pairs with captions of others, as the small studies write them."""

from collections import Counter
from pathlib import Path

from otter_jax.data.sources import open_source
from studies.small_runs import shuffled_pairs


def test_a_share_of_the_captions_changes_places(tmp_path: Path, pairs_folder: Path) -> None:
    given = open_source(f"webdataset:{pairs_folder}")
    spec = shuffled_pairs(f"webdataset:{pairs_folder}", tmp_path, 0.5, 3)
    found = open_source(spec)
    pairs = [(given[i], found[i]) for i in range(len(given))]
    assert len(found) == len(given) == 48
    assert all(one.image == other.image for one, other in pairs)
    captions = [[each[side].caption for each in pairs] for side in (0, 1)]
    assert Counter(captions[0]) == Counter(captions[1])
    assert sum(one != other for one, other in zip(*captions, strict=True)) == 24
    written = Path(spec.removeprefix("csv:"))
    before = written.read_bytes(), written.stat().st_mtime_ns
    assert shuffled_pairs(f"webdataset:{pairs_folder}", tmp_path, 0.5, 3) == spec
    assert (written.read_bytes(), written.stat().st_mtime_ns) == before
    other = shuffled_pairs(f"webdataset:{pairs_folder}", tmp_path, 0.5, 4)
    assert Path(other.removeprefix("csv:")).read_bytes() != before[0]
