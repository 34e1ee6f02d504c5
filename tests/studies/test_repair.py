"""The second study: its cells, shares, and what its judges hand to training."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
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
    image = pairs.collection.image[data.train]
    return judges.Case(image, data, 7, tmp_path / "judged", {})


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
        dataclasses.replace(case, data=other).estimate(1)


def test_repair_changes_captions_and_trust_alone(case: judges.Case) -> None:
    repaired = judges.JUDGES["repair"](case)
    ((pairs, _),) = noisy_pairs._loaded
    assert repaired.text.shape == case.data.text.shape and repaired.trust.shape == (220,)
    np.testing.assert_array_equal(repaired.pool, case.data.pool)
    right = pairs.collection.text[case.data.train]  # What they are called in truth.
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


def test_a_report_has_tables_and_a_picture(tmp_path: Path) -> None:
    lines = records("repair", "oracle", np.full((3, 2), 14.0))
    lines += records("repair", "lemon", np.full((3, 2), 13.0))
    for method in ("oracle", "lemon"):  # The trial that was chosen is in the tables.
        lines += [
            each | {"kind": "trial", "trial": 4} for each in records("", method, np.ones((3, 1)))
        ]
    repair.report(lines, tmp_path)
    text = (tmp_path / "repair_tables.md").read_text()
    assert "| 40 % shuffled | lemon | 4 | 2 |" in text
    with Image.open(tmp_path / "repair.png") as image:
        colours = {rgb for _, rgb in image.convert("RGB").getcolors(10**6)}
    assert (31, 119, 180) in colours and (255, 127, 14) in colours  # Both losses are drawn.


def test_every_rival_can_be_built() -> None:
    for method in RIVALS.values():
        assert method.judge is None or method.judge in judges.JUDGES
        runs.Trainer(method, methods.Setting(), methods.hyperparameters(method, 1))
    assert len(repair.cells()) == len(set(repair.cells())) == 7 * len(RIVALS) - 3 * 2


def test_the_impact_on_a_memory_is_that_of_a_slow_twin(
    case: judges.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges, "Setting", lambda: methods.Setting(batch_size=24))
    judges._make_warm_up_trainer.cache_clear()
    seen = []
    whole = judges.rivals.confidence
    monkeypatch.setattr(
        judges.rivals, "confidence", lambda *given: seen.append(given) or whole(*given)
    )
    found = judges.JUDGES["impact"](case).trust
    assert found.shape == (220,) and 0 < found.min() < found.max() == 1
    # The first batch again, by plain NumPy from its head to its losses.
    trainer, data = judges._warm_up_trainer(case.data), case.data
    judges._make_warm_up_trainer.cache_clear()
    variables = trainer.train(data, case.seed)
    everyone = np.arange(220)
    found = judges.rivals.clean_probability(losses(trainer, variables, data, everyone))
    clean = judges.rivals.memory_bank(found)
    entries = judges.rivals.memory_entries(case.image, data.text, clean)
    rows = np.random.default_rng((7, case.seed)).permutation(everyone)[:24]
    before, after = seen[0]
    for column in range(2):
        expected = losses(trainer, variables, data, entries[rows, column])
        np.testing.assert_allclose(before[:, column], expected, rtol=1e-4)
    kernel = variables.params["image_projection"]["kernel"]
    step = judges._step(trainer, variables, data.image[data.train[rows]], data.text[rows])
    moved = step.params["image_projection"]["kernel"] - kernel
    np.testing.assert_allclose(np.abs(moved), judges.IMPACT_RATE, rtol=1e-2)  # Adam's first step.
    expected = losses(trainer, step, data, entries[rows, 0])
    np.testing.assert_allclose(after[:, 0], expected, rtol=1e-4)


def losses(trainer, variables, data: runs.Data, rows: np.ndarray) -> np.ndarray:
    """Return each pair's InfoNCE among the others, summand by summand."""
    weights = variables.params["image_projection"]
    image = data.image[data.train[rows]] @ np.asarray(weights["kernel"]) + weights.get("bias", 0.0)
    cosines = np.array([
        [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in data.text[rows]] for x in image
    ])  # fmt: skip
    logits = trainer.scale(variables) * cosines
    own = np.diagonal(logits)
    by_row, by_column = (np.log(np.exp(logits).sum(axis=axis)) for axis in (1, 0))
    return ((by_row - own) + (by_column - own)) / 2


def test_progressive_targets_are_soft_for_a_part_of_each_batch(case: judges.Case) -> None:
    method = RIVALS["progressive self-distillation"]
    setting = methods.Setting(batch_size=24)
    chosen = methods.hyperparameters(method, 0) | {"epochs": 3}
    trainer = runs.Trainer(method, setting, chosen)
    assert not trainer.estimates and trainer.alphas.shape == trainer.shape
    # Hard targets alone are InfoNCE with the teacher's scale unused.
    hard = runs.Trainer(method, setting, chosen | {"first_alpha": 1.0, "last_alpha": 1.0})
    infonce = runs.Trainer(methods.METHODS["infonce"], setting, methods.hyperparameters(
        methods.METHODS["infonce"], 0) | {"epochs": 3})  # fmt: skip
    kernels = [
        np.asarray(each.train(case.data, 3).params["image_projection"]["kernel"])
        for each in (trainer, hard, infonce)
    ]
    np.testing.assert_allclose(kernels[1], kernels[2], atol=2e-5)
    assert np.abs(kernels[0] - kernels[2]).max() > 1e-3


def test_a_half_written_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    whole = '{"kind": "test", "method": "infonce"}\n'
    for damaged in ('{"kind": "te', '{"kind": "test"}', "[1]"):
        path.write_text(whole + damaged)
        with pytest.raises(ValueError, match=r"records\.jsonl:2 is no record"):
            noisy_pairs.read_records(path)
