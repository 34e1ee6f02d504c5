"""The second study: its cells, shares, and what its judges hand to training."""

from pathlib import Path

import numpy as np
import pytest
from test_runs import load_random_pairs

from studies import judges, methods, noisy_pairs, repair, runs
from studies.methods import RIVALS, SETTINGS

METRICS = ("recall@1", "recall@5", "recall@10", "hit@1", "hit@5", "hit@10")


def records(kind: str, method: str, scores: np.ndarray) -> list[noisy_pairs.Record]:
    return [
        {"kind": kind, "setting": "40 % shuffled", "method": method, "split": split, "seed": seed}
        | dict.fromkeys(METRICS, float(value))
        for (split, seed), value in np.ndenumerate(scores)
    ]


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> judges.Case:
    """Return the first split with 40 % of the captions shuffled."""
    setting = methods.Setting(wrong=0.4, batch_size=24)
    pairs = load_random_pairs(monkeypatch, tmp_path)
    data = pairs.data(setting, 0, 7, uses_trust=False)
    return judges.Case(pairs, data, 7, tmp_path / "judged")


def test_the_oracle_draws_the_right_pairs_and_no_other(case: judges.Case) -> None:
    pool = judges.JUDGES["right"](case).pool
    assert len(pool) == 220 - case.wrong.sum() and not case.wrong[pool].any()
    assert case.wrong.mean() == pytest.approx(0.4, abs=0.01)


def test_dropping_keeps_the_rest_and_prefers_right_pairs(case: judges.Case) -> None:
    for name in ("dropped", "lemon"):
        pool = judges.JUDGES[name](case).pool
        assert len(set(pool.tolist())) == len(pool) < 220
        assert case.wrong[pool].mean() < case.wrong.mean()
    assert len(judges.JUDGES["lemon"](case).pool) == 220 - case.wrong.sum()


def test_estimates_are_kept_with_what_they_depend_on(
    case: judges.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = case.estimate(1)
    monkeypatch.delattr(judges.trust_rounds, "estimate_in_rounds")
    np.testing.assert_array_equal(case.estimate(1).alpha, first.alpha)
    with pytest.raises(AttributeError):  # Of other captions nothing is kept.
        other = case.data._replace(caption_of=case.data.caption_of[::-1].copy())
        judges.Case(case.pairs, other, case.seed, case.folder).estimate(1)


def test_repair_changes_captions_and_trust_alone(case: judges.Case) -> None:
    repaired = judges.JUDGES["repair"](case)
    assert repaired.text.shape == case.data.text.shape and repaired.trust.shape == (220,)
    np.testing.assert_array_equal(repaired.pool, case.data.pool)
    right = case.pairs.collection.text[case.data.train]  # What they are called in truth.
    before, after = (np.einsum("nd,nd->n", each, right) for each in (case.data.text, repaired.text))
    assert after[case.wrong].mean() > before[case.wrong].mean()


def test_a_cell_is_tuned_and_tested_and_not_run_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    load_random_pairs(monkeypatch, tmp_path)
    monkeypatch.setitem(SETTINGS, "40 % shuffled", methods.Setting(wrong=0.4, batch_size=24))
    monkeypatch.setattr(repair, "TRIALS", range(1))
    monkeypatch.setitem(RIVALS, "small losses", RIVALS["small losses"])
    for seeds in (1, 1, 2):
        repair.run_cell("40 % shuffled", "small losses", tmp_path, seeds)
    found = noisy_pairs.read_records(tmp_path / "records.jsonl")
    kinds = [(each["kind"], each["seed"]) for each in found]
    expected = [("trial", noisy_pairs.TRIAL_SEED), ("repair", 0), ("repair", 1)]
    assert kinds == [each for each in expected for _ in range(3)]
    assert repair.scores_by_run(found, "40 % shuffled", "small losses").shape == (3, 2)


def test_shares_are_ratios_of_what_is_gained_and_what_was_lost() -> None:
    rng = np.random.default_rng(0)
    baseline, oracle = rng.normal(10, 0.1, (3, 8)), rng.normal(14, 0.1, (3, 4))
    exact = repair.repaired_share(oracle, baseline, oracle, rng)
    assert exact == repair.Share(1.0, 1.0, 1.0)
    half = (baseline[:, :4] + oracle) / 2
    assert repair.repaired_share(half, baseline, oracle, rng).mean == pytest.approx(0.5)
    noisy = half + rng.normal(0, 1, half.shape)
    share = repair.repaired_share(noisy, baseline, oracle, rng)
    assert share.low < share.mean < share.high and share.high - share.low > 0.1


def test_only_seeds_that_all_splits_have_are_counted() -> None:
    lines = records("repair", "oracle", np.arange(6.0).reshape(3, 2))[:-1]
    scores = repair.scores_by_run(lines, "40 % shuffled", "oracle")
    np.testing.assert_array_equal(scores, [[0.0], [2.0], [4.0]])
    assert repair.scores_by_run(lines, "40 % shuffled", "lemon").size == 0


def test_the_table_has_a_share_for_what_is_finished() -> None:
    lines = records("test", "infonce", np.full((3, 2), 10.0))
    lines += records("repair", "oracle", np.full((3, 2), 14.0))
    lines += records("repair", "lemon", np.full((3, 2), 13.0))
    table = {line.split(" | ")[0]: line for line in repair.table(lines)}
    assert "75 [75, 75]<br>+3.0" in table["| lemon"]
    assert "(10.0)" in table["| infonce"] and "100 [100, 100]" in table["| oracle"]
    assert not any(map(str.isdigit, table["| dropped"]))


def test_every_rival_can_be_built() -> None:
    for method in RIVALS.values():
        assert method.judge is None or method.judge in judges.JUDGES
        runs.Trainer(method, methods.Setting(), methods.hyperparameters(method, 1))
    assert len(repair.cells()) == len(set(repair.cells())) == 5 * len(RIVALS) - 2
