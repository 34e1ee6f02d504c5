"""The public model: images and texts of any form in, unit rows and probabilities out."""

import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from PIL import Image

import otter_jax
from otter_jax import config as config_lib
from otter_jax import objectives, sharding, terminal, train
from otter_jax.commands import main as commands
from otter_jax.data import images as image_functions
from otter_jax.embedding import encoder
from otter_jax.embedding.class_bank import class_bank
from otter_jax.json_files import write_json
from otter_jax.models import dual_encoder, from_pretrained
from otter_jax.models.export import export_dual_encoder
from otter_jax.runs import checkpoints
from otter_jax.training.state import initial_state

TOWERS = Path(__file__).parents[1] / "golden" / "towers"
SMALL_BERT = TOWERS / "small_bert"


@pytest.fixture
def model(tiny_config: Callable) -> encoder.Encoder:
    config = tiny_config()
    return encoder.make_encoder(
        config, *dual_encoder.split(encoder.build_module(config)), sharding.make_mesh()
    )


def photos(count: int, size: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, size=(count, size, size, 3), dtype=np.uint8)


def test_images_as_arrays_and_as_pil_agree(model: encoder.Encoder) -> None:
    arrays = photos(3)
    found = model.encode_image(arrays)
    assert found.shape == (3, 8) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(found, model.encode_image([Image.fromarray(x) for x in arrays]))


def test_transparent_and_grey_pil_images(model: encoder.Encoder) -> None:
    grey = Image.fromarray(photos(1)[0, :, :, 0])
    clear = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    white = Image.new("RGB", (40, 30), "white")
    found = model.encode_image([grey, clear, white])
    np.testing.assert_array_equal(found[1], found[2])  # Transparent is white, as in training.


def test_files_are_seen_as_in_training(model: encoder.Encoder, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # A telephone's portrait.
    path = tmp_path / "photo.jpg"
    Image.fromarray(photos(1)[0][:30]).save(path, exif=exif)
    expected = model.encode_image([image_functions.decode(path.read_bytes())])
    for image in (path, str(path), Image.open(path)):
        np.testing.assert_array_equal(model.encode_image([image]), expected)
        assert model.classify([image], ["a", "b"]).shape == (1, 2)
    with pytest.raises(ValueError, match="unknown range of values"):
        model.encode_image([Image.new("F", (8, 8), 0.5)])


def test_one_image_several_or_a_generator(model: encoder.Encoder, tmp_path: Path) -> None:
    array = photos(1)[0]
    Image.fromarray(array).save(tmp_path / "a.png")
    wanted = model.encode_image([array])
    path = tmp_path / "a.png"
    one = (array, jnp.asarray(array), Image.fromarray(array), path, path.read_bytes())
    for given in (*one, jnp.asarray(array)[None], (each for each in [array])):
        np.testing.assert_array_equal(model.encode_image(given), wanted)
    with pytest.raises(ValueError, match="an image or several, found int"):
        model.encode_image(3)


def test_prompts_may_be_several(model: encoder.Encoder) -> None:
    image, names = photos(1), (name for name in ("red", "a blue circle"))
    found = model.classify(image, names, ["a photo of {}.", "{}"])
    names = ("red", "a blue circle")
    texts = [model.encode_text([f"a photo of {n}.", n]).sum(axis=0) for n in names]
    bank = np.stack([text / np.linalg.norm(text) for text in texts])
    odds = np.log(found[0, 0] / found[0, 1])
    wanted = np.exp(3.9) * model.encode_image(image)[0] @ (bank[0] - bank[1])
    assert odds == pytest.approx(wanted, abs=1e-3)
    assert model.classify(image, ["red", "blue"], "clip80").shape == (1, 2)


def test_images_are_always_transformed(model: encoder.Encoder) -> None:
    # Of the model's own size too: the centre crop is part of the protocol.
    image = photos(1, size=model.image_size)[0]
    wanted = image_functions.evaluation_transform(image, model.image_size)
    np.testing.assert_array_equal(model.transform(image), wanted)
    assert (wanted != image).any()


@pytest.mark.parametrize("image", [np.full((8, 8, 3), 2.0), np.zeros((0, 8, 3), np.uint8)])
def test_what_is_no_image_is_refused(model: encoder.Encoder, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="image should"):
        model.encode_image([image])


def test_the_likeliest_names_of_each_image(model: encoder.Encoder) -> None:
    images, labels = photos(2), ["circle", "square", "ring"]
    found = model.top_k(images, iter(labels), 2)
    for named, row in zip(found, model.classify(images, labels), strict=True):
        wanted = sorted(zip(labels, row.tolist(), strict=True), key=lambda each: -each[1])[:2]
        assert named == [(name, pytest.approx(share, abs=1e-6)) for name, share in wanted]
    assert len(model.top_k(images, labels)[0]) == 3
    with pytest.raises(ValueError, match="k=0: it must be a whole number, at least 1"):
        model.top_k(images, labels, 0)
    with pytest.raises(ValueError, match="found the string 'cat'"):
        model.top_k(images, "cat")


def test_of_many_images_it_is_shown_how_far_they_are(
    model: encoder.Encoder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(encoder, "WORTH_PROGRESS", 3)
    model.encode_image(photos(2))
    capsys.readouterr()  # Compiling it may have lasted.
    model.encode_image(photos(2))
    assert capsys.readouterr().out == ""
    model.encode_image(photos(3))
    assert capsys.readouterr().out.startswith("images: 3 in")


def test_a_few_go_through_small_batches(model: encoder.Encoder) -> None:
    """Of several sizes, none of which changes what comes out."""
    pictures = photos(model.batch_size + 2)
    texts = [f"a {'red ' * (number % 4)}ring" for number in range(len(pictures))]
    transformed = [model.transform(picture) for picture in pictures]
    images = model.project_image(model.image_features(transformed))
    words = model.project_text(model.text_features(texts))
    for count in (1, 2, 8, 9, len(pictures)):
        found = model.encode_image(pictures[:count])
        np.testing.assert_allclose(found, images[:count], atol=1e-6)
        found = model.encode_text(texts[:count])
        np.testing.assert_allclose(found, words[:count], atol=1e-6)
    devices = model.mesh.devices.size
    sizes = {-(-size // devices) * devices for size in (1, 8, model.batch_size)}
    assert {shape[0] for (shape,) in model._compiled.embed_image._shapes} == sizes
    assert model.encode_image([]).shape == model.encode_text([]).shape == (0, 8)


@pytest.mark.parametrize("attends_to_padding", [False, True])
def test_short_texts_lose_padding_that_does_not_matter(
    tiny_config: Callable, monkeypatch: pytest.MonkeyPatch, attends_to_padding: bool
) -> None:
    monkeypatch.setattr(encoder, "LENGTHS", (4, 6))
    config = tiny_config(**{"model.text.name": "clip_text"})
    with config.unlocked():
        config.model.text.overrides.causal = not attends_to_padding
        config.model.text.overrides.pooling = "first" if attends_to_padding else "eos"
    model = encoder.make_encoder(
        config, *dual_encoder.split(encoder.build_module(config)), sharding.make_mesh()
    )
    for texts in (["red"], ["red", "a photo of a ring"], ["a photo of a red ring of a ring"]):
        wanted = model.project_text(model.text_features(texts))
        np.testing.assert_allclose(model.encode_text(texts), wanted, atol=1e-6)
    lengths = {tokens[1] for tokens, _ in model._compiled.embed_text._shapes}
    assert lengths == ({8} if attends_to_padding else {4, 6, 8})


def test_names_are_embedded_once_for_one_image_after_another(
    model: encoder.Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def counted(encode_text: Callable, *names: object) -> np.ndarray:
        made.append(names)
        return class_bank(encode_text, *names)

    monkeypatch.setattr(encoder, "class_bank", counted)
    first, second = photos(2)
    rows = model.classify([first, second], ["ring", "square"])
    for image, row in ((first, rows[0]), (second, rows[1])):
        np.testing.assert_allclose(model.classify(image, ["ring", "square"])[0], row, atol=1e-6)
    assert len(made) == 1
    swapped = model.classify(first, ["square", "ring"])[0]
    np.testing.assert_allclose(swapped, rows[0, ::-1], atol=1e-6)
    model.classify(first, ["square", "ring"], "{}")
    assert len(made) == 3


def test_a_compilation_that_lasts_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(terminal, "WORTH_A_WORD", 0.05)

    def slow(variables: dict, array: np.ndarray) -> jax.Array:
        time.sleep(0.2)
        return jnp.asarray(array)

    program = encoder.JittedPart(slow, "the image tower")
    for rows in (1, 1, 8):
        program({}, np.zeros((rows, 2)))
    said = "compiling the image tower, and its first batch"
    assert capsys.readouterr().out.count(f"{said}: 0 s") == 2


def test_a_model_goes_through_pickle(model: encoder.Encoder) -> None:
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.encode_image(photos(2)), model.encode_image(photos(2)))
    np.testing.assert_array_equal(again.encode_text(["a ring"]), model.encode_text(["a ring"]))
    assert again.mesh == model.mesh and again.scale_bounds == model.scale_bounds


def test_a_name_at_which_there_is_nothing_or_a_number_is_no_image(model: encoder.Encoder) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no image file cat\.jpg"):
        model.encode_image(["cat.jpg"])
    with pytest.raises(ValueError, match="an image or several, found int"):
        model.classify(4, ["a cat"])


def test_a_string_is_no_list_of_strings(model: encoder.Encoder) -> None:
    with pytest.raises(ValueError, match="found the string 'a cat'"):
        model.encode_text("a cat")
    with pytest.raises(ValueError, match="found the string 'cat'"):
        model.classify(photos(1), "cat")
    for text in (None, 5, b"x", ["a", "b"]):
        with pytest.raises(ValueError, match="texts should be strings, found"):
            model.encode_text([text])


def test_number_of_images_changes_nothing(model: encoder.Encoder) -> None:
    many = model.encode_image(photos(21))  # More than one batch, the last one padded.
    np.testing.assert_allclose(many[20:], model.encode_image(photos(21)[20:]), atol=1e-6)


def test_texts(model: encoder.Encoder) -> None:
    found = model.encode_text(["a red circle", "a blue square"])
    assert found.shape == (2, 8)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    assert model.encode_text([]).shape == (0, 8)


def test_probabilities_follow_the_similarities(model: encoder.Encoder) -> None:
    images, labels = photos(2), ["circle", "square", "ring"]
    found = model.classify(images, labels)
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-5)
    texts = model.encode_text([f"a photo of {label}." for label in labels])
    logits = np.exp(3.9) * model.encode_image(images) @ texts.T
    wanted = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(found, wanted / wanted.sum(1, keepdims=True), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "highest"), [("slip", np.inf), ("sigmoid", np.inf), ("declip", 30.0), ("otter", 100.0)]
)
def test_probabilities_have_the_scale_of_the_objective(
    tiny_config: Callable, tmp_path: Path, name: str, highest: float
) -> None:
    config = tiny_config(**{"objective.name": name, "data.image_size": 32})
    if name == "declip":
        config.objective.max_scale = highest
    model, variables = dual_encoder.split(encoder.build_module(config))
    params = variables.params | {"log_scale": np.log(np.float32(250.0))}
    found = encoder.make_encoder(
        config, model, variables._replace(params=params), sharding.make_mesh()
    )
    images, labels = photos(1), ["circle", "square"]
    texts = found.encode_text([f"a photo of {label}." for label in labels])
    cosines = found.encode_image(images) @ texts.T
    odds = np.log(found.classify(images, labels))
    wanted = min(250.0, highest) * (cosines[0, 0] - cosines[0, 1])
    np.testing.assert_allclose(odds[0, 0] - odds[0, 1], wanted, rtol=1e-3)
    found.save(tmp_path / "saved")
    assert otter_jax.load(tmp_path / "saved").scale_bounds == found.scale_bounds


def test_loaded_model_is_the_trained_one(tiny_config: Callable, tmp_path: Path) -> None:
    config = tiny_config(**{"total_steps": 2, "model.image.frozen": True})
    results = train.train(config, tmp_path)
    model = otter_jax.load(tmp_path)
    fresh = encoder.make_encoder(
        config, *dual_encoder.split(encoder.build_module(config)), sharding.make_mesh()
    )
    assert (model.encode_image(photos(1)) != fresh.encode_image(photos(1))).any()
    (pairs,) = config.evaluate.sets
    assert results[pairs]  # The same variables gave these.
    again = otter_jax.load(str(tmp_path))
    np.testing.assert_array_equal(model.encode_text(["a ring"]), again.encode_text(["a ring"]))


def same_model(first: encoder.Encoder, second: encoder.Encoder) -> None:
    jax.tree.map(np.testing.assert_array_equal, first.variables, second.variables)
    # The batches may be of other sizes, and then the last digit differs.
    images = photos(2)
    np.testing.assert_allclose(first.encode_image(images), second.encode_image(images), atol=1e-6)
    texts = ["a red ring", "a blue bar"]
    np.testing.assert_allclose(first.encode_text(texts), second.encode_text(texts), atol=1e-6)


def make_workdir(config: ConfigDict, workdir: Path) -> encoder.Encoder:
    """What a run leaves behind after its first checkpoint."""
    made = encoder.make_encoder(
        config, *dual_encoder.split(encoder.build_module(config)), sharding.make_mesh()
    )
    workdir.mkdir(exist_ok=True)
    write_json(workdir / "config.json", config_lib.as_dict(config))
    encoder.keep_description(made, workdir)
    state = initial_state(made.variables, optax.identity(), uses_teacher=False)
    with checkpoints.Checkpoints(workdir / "checkpoints", create=True) as saved:
        saved.save(state)
    return made


@pytest.fixture
def pretrained_config(tiny_config: Callable, tokenizer_folder: Path, tmp_path: Path) -> ConfigDict:
    """A config whose text tower, with its tokenizer, is read from a folder."""
    folder = tmp_path / "bert"
    shutil.copytree(SMALL_BERT, folder)
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    config = tiny_config(**{"total_steps": 2, "model.text.pretrained": str(folder),
                            "model.text.tokenizer": None})  # fmt: skip
    with config.unlocked():
        config.model.text.overrides = ConfigDict({"hidden_dropout_prob": 0.0})
    return config


def test_a_workdir_is_enough_on_another_machine(
    pretrained_config: ConfigDict, tmp_path: Path
) -> None:
    wanted = make_workdir(pretrained_config, tmp_path / "run")
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "bert")  # Weights and tokenizer that training began with.
    same_model(otter_jax.load(tmp_path / "elsewhere"), wanted)
    assert wanted.model.bind(wanted.variables).text.config.hidden_size == 32


def test_an_exported_folder_is_the_model(
    pretrained_config: ConfigDict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    wanted = make_workdir(pretrained_config, tmp_path / "run")
    commands.main(["export", str(tmp_path / "run"), str(tmp_path / "out")])
    assert "exported" in capsys.readouterr().out
    for gone in ("run", "bert"):
        shutil.rmtree(tmp_path / gone)
    found = otter_jax.load(tmp_path / "out")
    same_model(found, wanted)
    assert (found.image_size, found.fit) == (wanted.image_size, wanted.fit)
    labels = ["red", "blue"]
    np.testing.assert_allclose(
        found.classify(photos(1), labels), wanted.classify(photos(1), labels), atol=1e-5
    )
    found.save(tmp_path / "again")
    same_model(otter_jax.load(tmp_path / "again"), wanted)
    with pytest.raises(SystemExit, match=r"^otter_jax: .*again should be a new or an empty folder"):
        commands.main(["export", str(tmp_path / "out"), str(tmp_path / "again")])


def test_a_workdir_of_an_earlier_version_builds_from_its_config(
    tiny_config: Callable, tmp_path: Path
) -> None:
    wanted = make_workdir(tiny_config(), tmp_path)
    (tmp_path / encoder.MODEL_FILE).unlink()
    shutil.rmtree(tmp_path / encoder.TOKENIZER_FOLDER)
    same_model(otter_jax.load(tmp_path), wanted)


def test_a_projection_comes_from_the_towers_file(tiny_config: Callable, tmp_path: Path) -> None:
    module = encoder.build_module(tiny_config())
    export_dual_encoder(module, tmp_path / "both")
    changes = {f"model.{kind}.{key}": value for kind in ("image", "text") for key, value in (
        ("pretrained", str(tmp_path / "both")), ("projection", "pretrained"))}  # fmt: skip
    config = tiny_config(seed=5, **changes)
    config.model.image.overrides = config.model.text.overrides = ConfigDict()
    again = encoder.build_module(config)
    for side in ("image_projection", "text_projection"):
        kernels = [getattr(each, side).kernel[...] for each in (again, module)]
        np.testing.assert_array_equal(*kernels)
    config.model.embed_dim = 9
    with pytest.raises(ValueError, match=r"leads to 8 numbers; set config\.model\.embed_dim=8"):
        encoder.build_module(config)
    config = tiny_config(**{"model.text.pretrained": str(SMALL_BERT),
                            "model.text.projection": "pretrained"})  # fmt: skip
    config.model.text.overrides = ConfigDict()
    with pytest.raises(ValueError, match="small_bert holds a tower alone, without a projection"):
        encoder.build_module(config)


def test_what_cannot_be_found_is_said_with_its_key(tiny_config: Callable) -> None:
    for key in ("image.pretrained", "text.pretrained"):
        with pytest.raises(FileNotFoundError, match=rf"config\.model\.{key}: .* at /nowhere"):
            encoder.build_module(tiny_config(**{f"model.{key}": "/nowhere"}))
    with pytest.raises(ModuleNotFoundError, match=r"config\.model\.image\.pretrained: .*no_such"):
        encoder.build_module(tiny_config(**{"model.image.pretrained": "package:no_such"}))
    config = tiny_config(**{"model.text.tokenizer": "/nowhere"})
    with pytest.raises(FileNotFoundError, match=r"config\.model\.text\.tokenizer: .* at /nowhere"):
        encoder.find_tokenizer(config)
    config.model.text.update(tokenizer=None, pretrained="/nowhere")
    with pytest.raises(FileNotFoundError, match=r"config\.model\.text\.pretrained: .* at /nowhere"):
        encoder.find_tokenizer(config)


def test_a_step_may_be_named(tiny_config: Callable, tmp_path: Path) -> None:
    made = make_workdir(tiny_config(), tmp_path)
    params = jax.tree.map(lambda array: array + 1, made.variables.params)
    later = initial_state(
        made.variables._replace(params=params), optax.identity(), uses_teacher=False
    )
    with checkpoints.Checkpoints(tmp_path / "checkpoints") as saved:
        saved.save(later._replace(step=jnp.int32(7)))
    same_model(otter_jax.load(tmp_path, step=0), made)
    scale, first = (
        float(each.variables.params["log_scale"]) for each in (otter_jax.load(tmp_path), made)
    )
    assert scale == pytest.approx(first + 1)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 5 in .*; steps: 0, 7"):
        otter_jax.load(tmp_path, step=5)
    with pytest.raises(ValueError, match="is no workdir: it has no checkpoint of step 5"):
        otter_jax.load(TOWERS / "small_clip", step=5)


def test_loading_what_is_no_workdir(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither a workdir nor a folder of Encoder\.save"):
        otter_jax.load(tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = otter_jax.laod


def test_tokenizer_is_needed(tiny_config: Callable) -> None:
    with pytest.raises(ValueError, match=r"model\.text\.tokenizer"):
        encoder.find_tokenizer(tiny_config(**{"model.text.tokenizer": None}))


def test_it_shows_itself_in_one_line(model: encoder.Encoder) -> None:
    assert repr(model) == "Encoder(EfficientNetLite0, Bert, embed_dim=8, image_size=32)"


def test_a_checkpoint_with_two_towers_is_a_model(tmp_path: Path, tokenizer_folder: Path) -> None:
    """As CLIP's folders are: weights, config.json and the tokenizer's files side by side."""
    folder = tmp_path / "clip"
    shutil.copytree(TOWERS / "small_clip", folder)
    for file in tokenizer_folder.iterdir():
        shutil.copy(file, folder)
    model = otter_jax.load(folder)
    both = from_pretrained(folder)
    assert model.tokenizer.max_tokens == both.text.config.max_position_embeddings
    assert model.image_size == both.image.config.image_size
    tokens, mask = model.tokenizer(["a red circle"])
    text = both.text_projection(both.text_features(tokens, mask))
    np.testing.assert_allclose(
        model.encode_text(["a red circle"]), objectives.normalize(text), atol=1e-5
    )
    chances = model.classify(photos(1), ["red", "blue"])
    np.testing.assert_allclose(chances.sum(), 1.0, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (SMALL_BERT, r"small_bert holds one tower \(Bert\), and no pair"),
        ("nothing/at/all", "nothing/at/all is neither a workdir nor a folder"),
    ],
)
def test_what_is_no_model_is_named(path: Path | str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        otter_jax.load(path)


def test_what_is_public_is_listed_before_it_is_loaded() -> None:
    assert {"load", "list_towers"} <= set(dir(otter_jax))
    towers = otter_jax.list_towers()
    assert "resnet50" in towers["image"] and "bert" in towers["text"]


def test_the_images_of_a_folder_are_searched(
    model: encoder.Encoder, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "below"
    folder.mkdir()
    arrays = photos(5)
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{number}.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image either")
    texts = ["a red circle", "a blue square"]
    found = model.search(texts, tmp_path, k=3)
    assert "1 of 6 images cannot be read" in capsys.readouterr().out
    cosines = model.encode_text(texts) @ model.encode_image(arrays).T
    for row, answers in zip(cosines, found, strict=True):
        best = np.argsort(-row)[:3]
        assert [path.name for path, _ in answers] == [f"{number}.png" for number in best]
        np.testing.assert_allclose([cosine for _, cosine in answers], row[best], atol=1e-5)


def test_what_cannot_be_searched_is_refused(model: encoder.Encoder, tmp_path: Path) -> None:
    for images, message in (
        ("https://example.org/a.zip", "is a URL: download"),
        (tmp_path / "none", "no such folder"),
        (tmp_path, "no image file"),
        ([tmp_path / "none.png"], "not one of 1 images"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            model.search(["a cat"], images)
    with pytest.raises(ValueError, match="found 0 texts and k=5"):
        model.search([], tmp_path)
    with pytest.raises(ValueError, match="is a URL: download the image"):
        model.encode_image("https://example.org/cat.jpg")
