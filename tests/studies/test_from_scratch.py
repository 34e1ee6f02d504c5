"""The study from scratch: what it trains on, what it runs, and what it reports."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import write_shard
from PIL import Image

from otter_jax.data import images
from otter_jax.data.sources import open_source
from otter_jax.objectives import make_method
from studies import from_scratch, from_scratch_report
from studies.held_pairs import HeldPairs, as_pnm

INFONCE, SIGMOID = ("as given", "infonce"), ("as given", "sigmoid")


def test_pairs_that_are_held_are_those_of_their_source(pairs_folder: Path) -> None:
    source = open_source(f"webdataset:{pairs_folder}")
    held = HeldPairs(source)
    assert len(held) == len(source) == len(held.caption_counts)
    for given, kept in zip((source[i] for i in range(len(source))), held, strict=True):
        assert (given.key, given.caption) == (kept.key, kept.caption)
        np.testing.assert_array_equal(images.decode(given.image), images.decode(kept.image))
    with pytest.raises(IndexError):
        held[len(held)]


def test_what_cannot_be_decoded_is_skipped_and_counted(tmp_path: Path, shape_pairs: list) -> None:
    write_shard(tmp_path / "0.tar", [*shape_pairs[:3], (b"broken", "x"), *shape_pairs[4:6]])
    held = HeldPairs(open_source(f"webdataset:{tmp_path / '0.tar'}"))
    assert len(held) == 5 and sum(held.skipped.values()) == 1


def test_held_pairs_are_shuffled_by_share_and_seed(pairs_folder: Path) -> None:
    held = HeldPairs(open_source(f"webdataset:{pairs_folder}"))
    one, same, other = (held.shuffled(0.5, seed) for seed in (3, 3, 4))
    captions = [[each.caption for each in pairs] for pairs in (held, one, same, other)]
    assert captions[1] == captions[2] != captions[3]
    assert sorted(captions[0]) == sorted(captions[1])
    assert sum(a != b for a, b in zip(*captions[:2], strict=True)) == len(held) // 2
    assert one.fingerprint == same.fingerprint
    assert len({held.fingerprint, one.fingerprint, other.fingerprint}) == 3
    assert [each.image for each in one] == [each.image for each in held]


def test_grey_and_coloured_images_become_files_of_their_pixels() -> None:
    rng = np.random.default_rng(0)
    for pixels in (
        rng.integers(0, 256, (3, 5, 3), np.uint8),
        np.repeat(rng.integers(0, 256, (4, 2, 1), np.uint8), 3, axis=2),
    ):
        np.testing.assert_array_equal(images.decode(as_pnm(pixels)), pixels)


def test_every_cell_has_a_config_of_the_same_number_of_pairs(tmp_path: Path) -> None:
    study = from_scratch.Study(tmp_path / "pairs", tmp_path)
    for setting, method in from_scratch.CELLS:
        config = study.make_config(from_scratch.SETTINGS[setting], method, 2, 0.5)
        assert config.batch_size * config.total_steps == 256 * from_scratch.STEPS
        assert config.data.train == ("held:0.4:2" if "40" in setting else "held:0:0")
        assert make_method(**config.objective).name == config.objective.name


def test_only_what_is_tuned_and_tested_is_reported(tmp_path: Path) -> None:
    study = from_scratch.Study(tmp_path / "pairs", tmp_path)
    for cell, rates, shift in ((INFONCE, from_scratch.RATES, 0.0), (SIGMOID, (0.5,), 0.1)):
        for rate in rates:
            _finish(study, cell, from_scratch.TUNING_SEED, rate, 0.3 - abs(rate - 1.0) / 10)
        for seed in range(2):
            _finish(study, cell, seed, 1.0, 0.2 + shift)
    found = study.finished(3)
    assert list(found) == [INFONCE] and list(found[INFONCE]) == [0, 1]
    assert study.chosen_rate(*INFONCE) == 1.0
    np.testing.assert_allclose(found[INFONCE][1], 20.0)
    from_scratch.write_report(study, 3, tmp_path)
    assert "| as given | infonce | 1 |" in (tmp_path / "from_scratch_tables.md").read_text()
    with gzip.open(tmp_path / "from_scratch_records.jsonl.gz", "rt") as lines:
        runs = [json.loads(line) for line in lines]
    assert len(runs) == 3 + 2 + 1 + 2  # Of both cells, rates tried and seeds tested.
    assert {"seed": 1, "rate": None, "method": "infonce"}.items() <= runs[4].items()
    assert runs[4]["style_test classes"]["hit@1"] == 0.2 and "concepts_test" in runs[4]
    with pytest.raises(FileNotFoundError, match="no test is finished there"):
        from_scratch.write_report(from_scratch.Study(tmp_path, tmp_path / "none"), 3, tmp_path)
    with pytest.raises(ValueError, match="is of other pairs than those in"):
        from_scratch.write_report(from_scratch.Study(tmp_path / "other", tmp_path), 3, tmp_path)


def _finish(study: from_scratch.Study, cell: tuple, seed: int, rate: float, score: float) -> None:
    part = "validation" if seed == from_scratch.TUNING_SEED else "test"
    hits = {f"hit@{k}": score for k in from_scratch_report.KS}
    recalls = {f"equal_{way}_recall@{k}": score for way in ("i2t", "t2i") for k in (1, 5, 10)}
    place = study.place(*cell, seed, rate)
    place.mkdir(parents=True)
    (place / "results.json").write_text(json.dumps(dict.fromkeys(study.sets(part), hits | recalls)))


def test_a_difference_is_paired_and_its_interval_students() -> None:
    # Of gains 1, 2 and 6: mean 3, standard error sqrt(7 / 3), times 4.3027 (two degrees).
    base = {seed: np.full(12, 10.0 * seed) for seed in range(3)}
    ours = {seed: base[seed] + gain for seed, gain in enumerate((1.0, 2.0, 6.0))}
    found = {INFONCE: base, SIGMOID: ours, ("batch 1,024", "sigmoid"): ours}
    mean, low, high = from_scratch_report.difference(found, *SIGMOID)
    assert mean == pytest.approx(3.0)
    assert (high - mean, mean - low) == pytest.approx((4.3027 * (7 / 3) ** 0.5,) * 2, rel=1e-4)
    assert from_scratch_report.difference(found, "batch 1,024", "sigmoid") is None
    assert "| +3.0 [-3.6, +9.6] |" in from_scratch_report.table(found)
    first = {cell: {0: by_seed[0]} for cell, by_seed in found.items() if 0 in by_seed}
    of_one_seed = from_scratch_report.table(first)
    assert "±" not in of_one_seed and "nan" not in of_one_seed


def test_differences_are_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found = {cell: {n: rng.random(12) for n in range(2)} for cell in from_scratch.CELLS}
    del found[from_scratch.CELLS[-1][0], "infonce"]  # Not yet finished there.
    from_scratch_report.draw(found, tmp_path / "from_scratch.png")
    with Image.open(tmp_path / "from_scratch.png") as image:
        assert image.width > 600
        assert (31, 119, 180) in {rgb for _, rgb in image.convert("RGB").getcolors(10**6)}
