"""A SPEC means the same pairs in config.evaluate.sets as in config.data.train, in all its forms."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from conftest import draw_shape

from otter_jax.data.sources import open_source
from otter_jax.evaluation import pair_set, sets
from otter_jax.evaluation.labelled_set import LabelledSet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(draw_shape("red", "bar"))
    return tmp_path


def write_shard(path: Path, texts: list[str], metadata: dict | None) -> None:
    """A shard of one image with several texts, and metadata of its own unless None."""
    with tarfile.open(path, "w") as archive:
        for number, text in enumerate(texts):
            members = {"png": draw_shape("red", "bar"), "txt": text.encode()}
            if metadata is not None:
                members["json"] = json.dumps(metadata).encode()
            for suffix, data in members.items():
                header = tarfile.TarInfo(f"{number}.{suffix}")
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))


def open_one(spec: str) -> sets.EvaluationSet:
    (opened,) = sets.open_sets([spec], image_size=32)
    return opened


def assert_same(spec: str) -> pair_set.PairSet:
    """Compare the pairs, and what is left out, with those of training."""
    opened, source = open_one(spec), open_source(spec)
    assert isinstance(opened, pair_set.PairSet)
    records = [source[number] for number in range(len(source))]
    trained = Counter((record.image, caption) for record in records for caption in record.captions)
    keys = [opened.images.decode(int(n)).tobytes() for n in opened.image_of_text]
    assert len(keys) == len(opened.captions) == trained.total()
    assert Counter(opened.captions) == Counter(caption for _, caption in trained.elements())
    assert opened.contents()["skipped"] == source.skipped
    return opened


TABLES = {
    "list.csv": 'image,caption\na.png,"[""a cat"", ""a kitten""]"\nb.png,a dog\n',
    "python.csv": "image,caption\na.png,\"['a cat', 'a kitten']\"\nb.png,a dog\n",
    "twice.csv": "image,caption,caption\na.png,one,two\nb.png,three,\n",
    "broken.csv": "image,caption\na.png,a cat, on a mat\nb.png,a dog\n",
    "nul.csv": "image,caption\na.png,a\0 cat\nb.png,\0\n",
    "Names.CSV": "Image,Caption\na.png,a cat\n",
    "title.csv": "filepath,title\na.png,a cat\n",
    "blanks.csv": " image , caption \na.png,a cat\n",
    "mark.csv": '\ufeff"image","caption"\n"a.png","a cat"\n',
    "index.csv": ",image,caption\n0,a.png,a cat\n1,gone.png,x\n2,b.png,\n",
    "rows.csv": "image,caption\na.png,one\nb.png,two\na.png,three\n",
    "long.csv": f"image,caption\na.png,{'x' * 20_000}\nb.png,{'y' * 200_000}\nc.png,z\n",
    "tabs.tsv": "image\tcaption\na.png\ta, cat\n",
    "lines.jsonl": '{"file_name": "a.png", "text": "a \\ud83d"}\n{"file_name": "b.png"}\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_as_text(folder: Path, name: str) -> None:
    (folder / name).write_text(TABLES[name], encoding="utf-8")
    assert_same(f"csv:{folder / name}")


def test_tables_in_another_encoding_and_with_options(folder: Path) -> None:
    (folder / "p.csv").write_bytes(b"photo,words\na.png,caf\xe9\nb.png,a dog\n")
    opened = assert_same(f"csv:{folder}/p.csv?image=photo&caption=words")
    assert opened.captions == ["a dog"]
    assert opened.contents()["skipped"] == {"caption not UTF-8": 1}


def test_parquet_with_images_inside_and_several_tables(folder: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    image = draw_shape("blue", "ring")
    for number in range(2):
        columns = {"image": [image, image, image], "caption": ["['one', 'two']", "three", None]}
        parquet.write_table(pyarrow.table(columns), folder / f"{number}.parquet")
    opened = assert_same(f"csv:{folder}/*.parquet")
    assert len(opened.images) == 4 and opened.captions == ["one", "two", "three"] * 2
    assert_same(f"csv:{folder}/0.parquet")


def test_rows_of_one_image_are_its_captions(folder: Path) -> None:
    (folder / "p.csv").write_text(TABLES["rows.csv"])
    opened = open_one(f"csv:{folder}/p.csv")
    assert opened.captions == ["one", "three", "two"]
    assert opened.image_of_text.tolist() == [0, 0, 1] and opened.images.keys == ["a.png", "b.png"]


def test_texts_beside_images(folder: Path) -> None:
    for name, text in {"a": "one\u2028still one\ntwo", "b": "three", "c": ""}.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a.png").write_bytes(b"x")
    assert_same(f"folder:{folder}")


def test_listed_captions_of_a_tar_are_cleaned(tmp_path: Path) -> None:
    listed = ["half \ud83d", "a\0 cat", "x" * 20_000, "half \ud83d", " "]
    write_shard(tmp_path / "0.tar", ["half ?"], {"captions": listed})
    assert assert_same(f"webdataset:{tmp_path}/0.tar").captions == ["half ?", "a cat", "x" * 10_000]


def test_lines_of_texts_are_captions_where_all_are(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    texts = [f"first {n}\nsecond {n}\n" for n in range(3)]
    write_shard(tmp_path / "0.tar", texts, None)
    spec = f"webdataset:{tmp_path}/0.tar"
    assert_same(f"{spec}?captions=lines")
    opened = open_one(spec)
    assert opened.captions == [f"{word} {n}" for n in range(3) for word in ("first", "second")]
    assert "the lines of a text are taken for captions" in capsys.readouterr().out
    write_shard(tmp_path / "0.tar", texts, {"url": "x"})  # With metadata, as a download has.
    assert open_one(spec).captions == [text.strip() for text in texts]


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("image,labels\na.png,cat|animal\nb.png,\ngone.png,x\n", ["animal", "cat"]),
        ('image,label\na.png,"[""cat"", ""animal""]"\nb.png,\n', ["animal", "cat"]),
        ("image\tclass\na.png\tcat\n", ["cat"]),
    ],
)
def test_tables_with_labels(folder: Path, text: str, classes: list[str]) -> None:
    path = folder / ("p.tsv" if "\t" in text else "p.csv")
    path.write_text(text)
    opened = open_one(f"csv:{path}")
    assert isinstance(opened, LabelledSet)
    assert [names[0] for names in opened.labelled.class_names] == classes
    assert opened.labelled.left_out.get("image missing", 0) == text.count("gone")
    assert len(opened.labelled.images) == text.count("png") - text.count("gone")


def test_captions_as_labels_of_a_class_list(folder: Path) -> None:
    (folder / "p.csv").write_text("image,caption\na.png,cat\nb.png,dog|cat\n")
    (folder / "classes.txt").write_text("cat\ndog\n")
    opened = open_one(f"csv:{folder}/p.csv?classes={folder}/classes.txt")
    assert opened.labelled.labels.tolist() == [[0, -1], [1, 0]]


@pytest.mark.parametrize("names", [("00000", "00001"), ("train", "val")])
def test_folders_whose_names_are_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(draw_shape("red", "bar"))
    for opens in (open_one, open_source):
        with pytest.raises(ValueError, match=r"add \?captions=folders"):
            opens(f"folder:{tmp_path}")
    opened = open_one(f"folder:{tmp_path}?captions=folders")
    assert [each[0] for each in opened.labelled.class_names] == list(names)


def test_hidden_folders_are_no_classes(folder: Path) -> None:
    for name in ("cat", ".ipynb_checkpoints", "@eaDir"):
        (folder / name).mkdir()
        (folder / name / "1.png").write_bytes(draw_shape("red", "bar"))
    opened = open_one(f"folder:{folder}")
    assert opened.labelled.class_names == (("cat",),) and len(opened.labelled.images) == 1
    assert len(open_source(f"folder:{folder}")) == 1
