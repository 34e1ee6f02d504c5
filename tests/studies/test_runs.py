"""Runs and jobs of the study, on few random pairs."""

from pathlib import Path

import numpy as np
import pytest
from test_collection import random_collection

from studies import methods, noisy_pairs, runs
from studies.methods import METHODS, SETTINGS


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> runs.Pairs:
    return load_random_pairs(monkeypatch, tmp_path)


def load_random_pairs(monkeypatch: pytest.MonkeyPatch, workdir: Path) -> runs.Pairs:
    """Return images that are a linear function of their captions, and noise, as this worker's."""
    monkeypatch.setattr(runs, "NUM_PAIRS", 220)
    monkeypatch.setattr(runs, "COMPONENTS", 32)
    monkeypatch.setitem(SETTINGS, "as given", methods.Setting(batch_size=24))
    collection = random_collection()
    mixing = np.random.default_rng(1).normal(size=(384, 40)) / 10
    image = collection.text @ mixing + 0.1 * collection.image
    pairs = runs.Pairs(collection._replace(image=image.astype(np.float32)))
    monkeypatch.setattr(noisy_pairs, "_loaded", [(pairs, workdir)])
    return pairs


@pytest.mark.parametrize("method", ["infonce", "trust + otter"])
def test_a_job_learns_and_gives_the_same_records_again(pairs: runs.Pairs, method: str) -> None:
    job = noisy_pairs.Job("trial", "as given", method, 0)
    _, records, ranks = noisy_pairs.run(job)
    assert [(each["split"], each["seed"]) for each in records] == [(n, 1000) for n in range(3)]
    assert np.mean([each["recall@10"] for each in records]) > 55  # By chance 33.
    assert noisy_pairs.run(job)[1] == records
    validation = [len(split.validation) for split in pairs.splits]
    assert [rows.shape for rows in ranks.values()] == [(1, 2 * n + 25) for n in validation]


def test_components_keep_the_geometry_of_training_images() -> None:
    collection = random_collection()
    (image,) = runs.principal_components(collection.image[:200], collection.image)
    centred = collection.image[:200] - collection.image[:200].mean(axis=0)
    ratio = (image[:200] @ image[:200].T) / (centred @ centred.T)
    np.testing.assert_allclose(ratio, np.full_like(ratio, ratio[0, 0]), rtol=2e-2)
    assert np.mean(image[:200] ** 2) == pytest.approx(1)


def test_scores_count_both_directions() -> None:
    ranks = runs.Ranks(np.array([0, 3]), np.array([0, 0]), np.array([10, 9, 0, 4]))
    assert ranks.scores() == {
        "recall@1": 75.0, "recall@5": 100.0, "recall@10": 100.0,
        "hit@1": 25.0, "hit@5": 50.0, "hit@10": 75.0,
    }  # fmt: skip


def test_all_methods_draw_the_same_common_numbers() -> None:
    for trial in range(methods.NUM_TRIALS):
        drawn = [methods.hyperparameters(method, trial) for method in METHODS.values()]
        common = [{name: each[name] for name in methods.COMMON_SPACE} for each in drawn]
        assert all(each == common[0] for each in common)
    assert methods.hyperparameters(METHODS["otter"], 0)["epsilon"] == 0.15


def test_every_trial_of_every_method_can_be_built() -> None:
    for method in METHODS.values():
        for trial in range(methods.NUM_TRIALS):
            runs.Trainer(method, methods.Setting(), methods.hyperparameters(method, trial))


def test_what_is_on_record_is_not_run_again_and_the_best_trial_is_taken() -> None:
    jobs = [noisy_pairs.Job("trial", "as given", "otter", trial) for trial in range(3)]
    metrics = ["recall@1", "recall@5", "recall@10", "hit@1", "hit@5", "hit@10"]
    records = [
        {**job._asdict(), "split": split, **dict.fromkeys(metrics, value)}
        for job, values in zip(jobs, ([1.0, 2.0], [3.0, 1.0], [1.0, 3.0]), strict=True)
        for split, value in enumerate(values)
    ]
    assert noisy_pairs.unfinished(jobs, records[2:4]) == [jobs[0], jobs[2]]
    assert noisy_pairs.best_trial(records, "as given", "otter") == 1  # Of equal ones the first.


def test_a_change_replaces_one_hyperparameter() -> None:
    job = noisy_pairs.Job("sweep", "40 % shuffled", "otter", 0, "epsilon=0.5")
    chosen = methods.hyperparameters(METHODS["otter"], 0)
    assert job.hyperparameters() == chosen | {"epsilon": 0.5}
