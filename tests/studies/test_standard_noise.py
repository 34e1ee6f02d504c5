"""The field's table by one command, on few random pairs."""

from pathlib import Path

import numpy as np
import pytest
from test_frozen_pairs import random_side

from studies import noise, runs
from studies import standard_noise as study

SPECS = ["--train=a", "--validation=b", "--test=c"]


@pytest.fixture(scope="module")
def pairs() -> study.Study:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(16, 24))
    sides = [random_side(rng, images, mixing) for images in (300, 40, 40)]
    components = runs.principal_components(sides[0].image, *(side.image for side in sides))
    nouns = tuple((text.split(",")[0][-1],) for text in sides[0].captions.text)
    return study.Study(*sides, components, nouns, {}, False)


@pytest.mark.parametrize("kind", ["random", "category", "noun"])
def test_wrong_captions_have_their_share(pairs: study.Study, kind: str) -> None:
    data = study.make_data(pairs, noise.Noise(kind, 0.4), 1)
    wrong = data.caption_of != data.train
    assert wrong.mean() == pytest.approx(0.4, abs=0.02)
    again = study.make_data(pairs, noise.Noise(kind, 0.4), 1)
    np.testing.assert_array_equal(again.text, data.text)


def test_a_cell_is_tuned_tested_and_tabled(
    pairs: study.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "Setting", lambda: study.methods.Setting(batch_size=100))
    for method, seeds in (("infonce", 1), ("infonce", 2), ("oracle", 2), ("trust weights", 2)):
        # What is on record is not run again.
        study.run_cell("random:0.6", method, pairs, tmp_path, trials=1, seeds=seeds)
    records = study.noisy_pairs.read_records(tmp_path / "records.jsonl")
    assert [(each["kind"], each["seed"]) for each in records[:3]] == [
        ("trial", 1000),
        ("test", 0),
        ("test", 1),
    ]
    assert len(records) == 9 and all(each["pairs"] == 600 for each in records)
    scores = {
        method: np.mean([study.score(each) for each in records if each["method"] == method])
        for method in ("infonce", "oracle", "trust weights")
    }
    assert scores["infonce"] < scores["trust weights"] and scores["infonce"] < scores["oracle"]
    lines = study.tables(records)
    (facts,) = (line for line in lines if " of 600 pairs are wrong; trust estimates " in line)
    assert 0.8 < float(facts.rstrip(".").rpartition(" ")[2]) < 1.0  # AUC.
    (oracle,) = (line for line in lines if line.startswith("| oracle |"))
    assert oracle.endswith("100 [100, 100] |") and oracle.split(" | ")[2] == "2"


def test_no_share_is_told_where_an_oracle_is_not_ahead_with_every_seed() -> None:
    def tests(method: str, *scores: float) -> list[study.Record]:
        facts = {"kind": "test", "noise": "noun:0.1", "method": method, "trial": 0}
        facts |= {"wrong": 0.1, "pairs": 9}
        return [
            facts | {"seed": seed} | dict.fromkeys(study.METRICS, each)
            for seed, each in enumerate(scores)
        ]

    rest = tests("infonce", 10.0, 10.0) + tests("sigmoid", 11.0, 11.0)
    ahead = study.tables(rest + tests("oracle", 12.0, 14.0))
    assert any("| sigmoid |" in line and "| 33 [" in line for line in ahead)
    level = study.tables(rest + tests("oracle", 12.0, 9.0))
    assert any("| sigmoid |" in line and line.endswith("| - |") for line in level)


def test_recalls_are_customary_unless_equal_captions_count() -> None:
    captions = noise.Captions(("a cat", "A cat.", "a dog"), np.arange(3))
    image = np.eye(3, dtype=np.float32)
    text = image[[1, 0, 2]]  # The cats are taken for each other.
    customary = study.recalls(image, text, captions, False)
    assert customary["i2t_recall@1"] == customary["t2i_recall@1"] == pytest.approx(1 / 3)
    equal = study.recalls(image, text, captions, True)
    assert set(study.METRICS) <= set(equal) and equal["i2t_recall@1"] == 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([*SPECS], "give --noise"),
        (["--train=a", "--noise=random:0.4"], "give --train, --validation and --test"),
        ([*SPECS, "--noise=random"], "unknown noise 'random'"),
        ([*SPECS, "--noise=none.npy"], "--noise=none.npy: there is nothing there"),
        ([*SPECS, "--noise=random:1", "--order=no.txt"], "--order=no.txt: there is nothing there"),
        (["--out=/"], "--out=/: name a file"),
        (["--out=nowhere/tables.md"], "--out=nowhere/tables.md: name a file, in a folder"),
        (["--karpathy=x.json", "--noise=random:0.4"], "or --karpathy and --images"),
        ([*SPECS, "--karpathy=x.json", "--noise=random:0.4"], "or --karpathy and --images"),
        ([*SPECS, "--noise=random:0.4", "--trials=0"], "--trials=0; it must be at least 1"),
        ([*SPECS, "--noise=random:0.4", "--pairs=0"], "--pairs=0; it must be at least 1"),
    ],
)
def test_a_command_that_lacks_something_is_refused(
    given: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        study.parse_arguments(["--workdir=w", *given])
    assert message in capsys.readouterr().err


def test_an_empty_file_is_refused_before_work(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "train_caps.txt").touch()
    given = [*SPECS, "--noise=random:0.4", f"--order={tmp_path / 'train_caps.txt'}"]
    with pytest.raises(SystemExit):
        study.parse_arguments(["--workdir=w", *given])
    assert "train_caps.txt: the file is empty" in capsys.readouterr().err


def test_noise_that_is_written_in_two_ways_is_one() -> None:
    written = ["random:0.4", "random:0.40", "noun:.4", "random:-0", "random:0", "noun:0.12345678"]
    noise = [f"--noise={each}" for each in written]
    arguments = study.parse_arguments(["--workdir=w", *SPECS, *noise])
    assert arguments.noise == ["random:0.4", "noun:0.4", "random:0", "noun:0.12345678"]


def test_tables_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no test is finished there; first run it without"):
        study.main([f"--workdir={tmp_path}", f"--out={tmp_path / 'tables.md'}"])
    assert not list(tmp_path.iterdir())


def test_a_workdir_of_other_data_is_refused(tmp_path: Path) -> None:
    given = [f"--workdir={tmp_path}", *SPECS, "--noise=random:0.4"]
    other = study.parse_arguments([*given, "--pairs=100"])
    study.refuse_other_data(other)  # What ended before its data were read leaves no trace.
    for _ in range(2):
        study.refuse_other_data(study.parse_arguments(given))
        study.remember_data(study.parse_arguments(given))
    with pytest.raises(ValueError, match="has records of --pairs=None, and not of 100"):
        study.refuse_other_data(other)
