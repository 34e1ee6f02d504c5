"""A dual encoder at work: images and texts in, unit embeddings out, on every device.

This is what `otter_jax.load` gives to users, what evaluates during training, and what computes the
features of frozen towers once.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from otter_jax import objectives, sharding
from otter_jax.data import images as image_functions
from otter_jax.data.resizing import resize_as, resized_side
from otter_jax.data.templates import DEFAULT_TEMPLATE, read_templates
from otter_jax.data.texts import Tokenizer, shortened
from otter_jax.embedding import published
from otter_jax.embedding.class_bank import class_bank
from otter_jax.embedding.given_images import AnyImage, as_rgb, image_files, one_by_one, readable
from otter_jax.embedding.nearest_rows import nearest_rows
from otter_jax.json_files import read_json, write_json
from otter_jax.models import blueprint, dual_encoder, export, pretrained
from otter_jax.models.clip_text import stretch_positions
from otter_jax.models.dual_encoder import FunctionalModel, Variables
from otter_jax.models.hub import TOKENIZER_FILES, find_pretrained
from otter_jax.models.lora import Lora
from otter_jax.models.projections import make_projection, output_width
from otter_jax.models.two_towers import KINDS, Kind
from otter_jax.random_keys import named_key
from otter_jax.terminal import progress, say, working

WORTH_PROGRESS = 1000  # Images: of fewer it is not said how far they are.
MOST_TOKENS = 128  # Of a checkpoint's text tower that could take more.
SIZES = (1, 8)  # Of the batches that a few images or texts make, beside `Encoder.batch_size`.
LENGTHS = (16, 32, 64)  # Of texts there, beside the longest that the tokenizer gives.
MODEL_FILE = "model.json"
TOKENIZER_FOLDER = "tokenizer"


def build_module(config: ConfigDict) -> dual_encoder.DualEncoder:
    """Return the network of a config: pretrained towers, projections, heads."""
    projections = _rngs(config, "projections")
    image, text = (_build_side(config, kind, projections) for kind in KINDS)
    trainable, options = _trainable_parts(config), objectives.make_method(**config.objective)
    heads = dual_encoder.Heads(
        simsiam=options.uses_simsiam,
        simclr=options.uses_simclr,
        tokens=options.uses_masked_language,
    )
    return dual_encoder.DualEncoder(
        *(image.tower, text.tower, image.projection, text.projection),
        image_trainable=trainable["image"],
        text_trainable=trainable["text"],
        initial_scale=options.initial_scale,
        initial_bias=options.initial_bias,
        heads=heads,
        rngs=_rngs(config, "heads"),
    )


def _rngs(config: ConfigDict, name: str) -> nnx.Rngs:
    return nnx.Rngs(named_key(config.seed, name))


def _trainable_parts(config: ConfigDict) -> dict[str, dual_encoder.TrainableParts]:
    return {
        kind: dual_encoder.TrainableParts(
            frozen=config.model[kind].frozen,
            trainable=config.model[kind].trainable,
            keep_batch_stats=config.model[kind].keep_batch_stats,
            lora=Lora(**config.model[kind].lora) if config.model[kind].lora.rank else None,
        )
        for kind in KINDS
    }


def _build_side(config: ConfigDict, kind: Kind, projections: nnx.Rngs) -> pretrained.ProjectedTower:
    """Return a tower with the layer after it, which is drawn at random unless pretrained."""
    settings, embed_dim = config.model[kind], config.model.embed_dim
    with _naming(f"config.model.{kind}.pretrained"):
        tower, projection = pretrained.create_tower(
            kind,
            settings.name,
            settings.pretrained,
            rngs=_rngs(config, f"{kind} tower"),
            dtype=np.dtype(config.model.dtype),
            allow_missing=settings.allow_missing,
            where_known={"image_size": config.data.image_size},
            **{name: True for name in ("remat", "scan_layers") if settings[name]},
            **settings.overrides,
        )
    if settings.get("positions") is not None:
        stretch_positions(tower, settings.positions)
    key = f"config.model.{kind}.projection={settings.projection!r}"
    if settings.projection != "pretrained":
        made = make_projection(settings.projection, tower.width, embed_dim, rngs=projections)
        return pretrained.ProjectedTower(tower, made)
    if projection is None:
        raise ValueError(f"{key}: {settings.pretrained} holds a tower alone, without a projection")
    if (found := output_width(projection, tower.width)) != embed_dim:
        raise ValueError(
            f"{key}: that of {settings.pretrained} leads to {found} numbers; set "
            f"config.model.embed_dim={found}, which is {embed_dim}"
        )
    return pretrained.ProjectedTower(tower, projection)


@contextlib.contextmanager
def _naming(key: str) -> Iterator[None]:
    """Put the config key in front of what is said of something that cannot be found."""
    try:
        yield
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise type(error)(f"{key}: {error}") from error


def find_tokenizer(config: ConfigDict) -> Path:
    """Return the tokenizer's folder: `model.text.tokenizer`, else beside the tower's weights."""
    settings = config.model.text
    if not settings.tokenizer and settings.pretrained is None:
        raise ValueError("config.model.text.tokenizer: a text tower without weights needs one")
    key = "tokenizer" if settings.tokenizer else "pretrained"
    with _naming(f"config.model.text.{key}"):
        location = find_pretrained(settings[key])
    return location if location.is_dir() else location.parent


class JittedPart:
    """A jitted function of (variables, arrays...) that says so where it is compiled for long."""

    def __init__(self, run: Callable[..., jax.Array], name: str):
        """Take the function, and what it runs."""
        self._run, self._name = run, name
        self._shapes: set[tuple] = set()  # Of the arrays that it has been compiled for.

    def __call__(self, variables: Variables, *arrays: jax.Array) -> jax.Array:
        """Return the function's value."""
        shapes = tuple(array.shape for array in arrays)
        if shapes in self._shapes:
            return self._run(variables, *arrays)
        with working(f"compiling {self._name}, and its first batch"):
            value = jax.block_until_ready(self._run(variables, *arrays))
        self._shapes.add(shapes)
        return value


class Compiled(NamedTuple):
    """The jitted parts of an encoder; every process gets the whole of their results."""

    image_features: JittedPart
    text_features: JittedPart
    project_image: JittedPart
    project_text: JittedPart
    embed_image: JittedPart  # Tower and projection in one.
    embed_text: JittedPart


@functools.cache
def compiled(model: FunctionalModel, mesh: Mesh) -> Compiled:
    """Jit, once for each model, functions of (variables, arrays...)."""

    def jit(function: Callable[..., jax.Array], name: str) -> JittedPart:
        run = jax.jit(
            lambda variables, *arrays: function(
                model.bind(sharding.whole_in_use(mesh, variables)), *arrays
            ),
            out_shardings=sharding.replicated(mesh),
        )
        return JittedPart(run, name)

    def project_image(module: dual_encoder.DualEncoder, features: jax.Array) -> jax.Array:
        return objectives.normalize(module.image_projection(features))

    def project_text(module: dual_encoder.DualEncoder, features: jax.Array) -> jax.Array:
        return objectives.normalize(module.text_projection(features))

    def embed_image(module: dual_encoder.DualEncoder, images: jax.Array) -> jax.Array:
        return project_image(module, module.image_features(images))

    def embed_text(module: dual_encoder.DualEncoder, *tokens: jax.Array) -> jax.Array:
        return project_text(module, module.text_features(*tokens))

    return Compiled(
        image_features=jit(lambda module, images: module.image_features(images), "the image tower"),
        text_features=jit(lambda module, *tokens: module.text_features(*tokens), "the text tower"),
        project_image=jit(project_image, "the projection of images"),
        project_text=jit(project_text, "the projection of texts"),
        embed_image=jit(embed_image, "the image tower"),
        embed_text=jit(embed_text, "the text tower"),
    )


@dataclasses.dataclass(frozen=True, repr=False)
class Encoder:
    """Images and texts to unit embeddings, in batches of a few shapes, split over the mesh.

    What is measured goes through the towers in batches of `batch_size`, be they full or not, so
    that features are the same to the last bit however many there are. What users ask for one by one
    goes through in the smallest of `SIZES` that holds it, and texts in the shortest of `LENGTHS`.
    """

    model: FunctionalModel
    variables: Variables
    tokenizer: Tokenizer
    tokenizer_folder: Path
    mesh: Mesh
    image_size: int
    fit: str = "crop"
    batch_size: int = 64
    scale_bounds: tuple[float | None, float | None] = (1.0, objectives.MAX_SCALE)

    def __repr__(self) -> str:
        """Return one line: what notebooks show."""
        module = self.model.bind(self.variables)
        towers = f"{type(module.image).__name__}, {type(module.text).__name__}"
        return f"Encoder({towers}, embed_dim={module.embed_dim}, image_size={self.image_size})"

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle keeps: the arrays as NumPy's, and no devices."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "mesh"]
        kept = {name: getattr(self, name) for name in names}
        return kept | {"variables": jax.tree.map(np.asarray, self.variables)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Place the model on all devices that there are where it is unpickled."""
        mesh = sharding.make_mesh()
        variables = sharding.put_state(mesh, state["variables"])
        vars(self).update(state, mesh=mesh, variables=variables)

    @functools.cached_property
    def _compiled(self) -> Compiled:  # Kept: to look it up takes longer than a small tower.
        return compiled(self.model, self.mesh)

    @functools.cached_property
    def resize(self) -> tuple[str, float, str] | None:
        """How the image tower's weights expect images to be resized, see `data.resizing`."""
        settings = self.model.bind(self.variables).image.config
        return getattr(settings, "resize", None)  # A tower from outside may know of none.

    @functools.cached_property
    def embed_dim(self) -> int:
        """Numbers of an embedding."""
        return self.model.bind(self.variables).embed_dim

    @functools.cached_property
    def image_width(self) -> int:
        """Features of the image tower."""
        return self.model.bind(self.variables).image.width

    @functools.cached_property
    def text_width(self) -> int:
        """Features of the text tower."""
        return self.model.bind(self.variables).text.width

    @functools.cached_property
    def ignores_padding(self) -> bool:
        """Whether padding behind a text changes nothing about it; a tower from outside may say."""
        return getattr(self.model.bind(self.variables).text, "ignores_padding", False)

    def save(self, folder: str | Path) -> None:
        """Write the model into a folder that `load` reads on any machine.

        Where both towers are CLIP's, transformers (`CLIPModel`, `CLIPProcessor`, its pipelines) and
        open_clip (`local-dir:FOLDER`) read it too. The folder must be empty or new (else
        ValueError).
        """
        folder = Path(folder)
        data = {
            "image_size": self.image_size,
            "fit": self.fit,
            "max_tokens": self.tokenizer.max_tokens,
            "scale_bounds": self.scale_bounds,
        }
        export.export_dual_encoder(self.model.bind(self.variables), folder, data, self.sizes())
        self.tokenizer.save(folder)

    def sizes(self) -> export.Sizes | None:
        """Return how `transform` resizes; None for padding, which no other library does."""
        if self.fit != "crop":
            return None
        size = self.image_size
        if self.resize is None:
            return export.Sizes(size, round(size * image_functions.RESIZE_FACTOR))
        mode, crop_share, interpolation = self.resize
        return export.Sizes(size, resized_side(size, crop_share), mode, interpolation)

    def describe_transform(self) -> dict[str, Any]:
        """Return how `transform` and the network prepare images, of JSON's types."""
        image, sizes = self.model.bind(self.variables).image, self.sizes()
        return {
            "fit": self.fit,
            **({"image_size": self.image_size} if sizes is None else sizes._asdict()),
            "mean": list(image.mean),
            "std": list(image.std),
        }

    def replace(self, variables: Variables) -> "Encoder":
        """Return the same network with other arrays; nothing is compiled again."""
        return dataclasses.replace(self, variables=variables)

    def encode_image(self, images: AnyImage | Iterable[AnyImage]) -> np.ndarray:
        """Return unit image embeddings; of thousands it is shown how far they are.

        Args:
            images: one or several, also as they come from a generator: PIL images, paths or
                contents of files, or arrays [H, W, 3], [H, W] or [H, W, 4] of any size, uint8 or
                floats in [0, 1]; or one array [N, H, W, 3]. All are seen as training sees them:
                upright, and with transparency laid on white.

        Returns:
            float32 [N, embed_dim].

        Raises:
            ValueError: for what is no image, see `given_images.as_rgb`.
        """
        images = one_by_one(images)
        if isinstance(images, Sized) and len(images) >= WORTH_PROGRESS:
            images = progress(images, len(images), "images")
        rows = ((self.transform(image),) for image in images)
        return _joined(self._in_batches(self._compiled.embed_image, rows, SIZES), self.embed_dim)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit text embeddings, float32 [N, embed_dim]; ValueError for what is no text."""
        if isinstance(texts, str):
            raise ValueError(f"texts should be a list of strings, found the string {texts!r}")
        texts = list(texts)
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"texts should be strings, found {text!r:.60}")
        tokens, mask = self.tokenizer(texts)
        if self.ignores_padding:
            tokens, mask = shortened(tokens, mask, LENGTHS)
        rows = zip(tokens, mask, strict=True)
        return _joined(self._in_batches(self._compiled.embed_text, rows, SIZES), self.embed_dim)

    def classify(
        self,
        images: AnyImage | Iterable[AnyImage],
        labels: Iterable[str],
        template: str | Sequence[str] = DEFAULT_TEMPLATE,
    ) -> np.ndarray:
        """Return every label's probability for every image, float32 [N, len(labels)].

        Rows sum to 1: a softmax over the labels with the learned scale, also where training
        compared pairs with a sigmoid, whose bias is the same for all labels.

        Args:
            images: as in `encode_image`.
            labels: the names of the classes.
            template: the prompt around a name, such as "a drawing of {}."; several, a text file of
                one a line, or "clip80", and the names' embeddings are means over the prompts.

        Raises:
            ValueError: for labels that are no strings, a template without {}, and as
                `encode_image`.
        """
        if isinstance(labels, str):
            raise ValueError(f"labels should be a list of strings, found the string {labels!r}")
        labels = list(labels)
        if wrong := [label for label in labels if not isinstance(label, str)]:
            raise ValueError(f"labels should be strings, found {wrong[0]!r}")
        bank = self._class_bank(labels, read_templates(template))
        log_scale = np.asarray(self.variables.params["log_scale"])
        scale = objectives.scale_from_log(log_scale, *self.scale_bounds)
        logits = np.asarray(scale) * self.encode_image(images) @ bank.T
        return np.asarray(jax.nn.softmax(logits, axis=1))

    @functools.cached_property
    def _latest_bank(self) -> dict[tuple, np.ndarray]:
        return {}

    def _class_bank(self, labels: Sequence[str], templates: Sequence[str]) -> np.ndarray:
        """Return the class bank of some labels; the latest is kept for the next image."""
        key = tuple(labels), tuple(templates)
        bank = self._latest_bank.get(key)
        if bank is None:
            bank = class_bank(self.encode_text, labels, templates)
            self._latest_bank.clear()
            self._latest_bank[key] = bank
        return bank

    def top_k(
        self,
        images: AnyImage | Iterable[AnyImage],
        labels: Iterable[str],
        k: int = 5,
        template: str | Sequence[str] = DEFAULT_TEMPLATE,
    ) -> list[list[tuple[str, float]]]:
        """Return every image's likeliest labels with their probabilities, likeliest first.

        Args:
            images: as in `encode_image`.
            labels: as in `classify`, and the probabilities are those.
            k: how many of them; all where there are fewer.
            template: as in `classify`.

        Raises:
            ValueError: for k below 1, and as `classify`.
        """
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"k={k!r}: it must be a whole number, at least 1")
        labels = labels if isinstance(labels, str) else list(labels)  # Which `classify` refuses.
        rows = self.classify(images, labels, template)
        best = np.argsort(-rows, axis=1, kind="stable")[:, :k]
        return [
            [(labels[number], float(row[number])) for number in numbers]
            for row, numbers in zip(rows, best, strict=True)
        ]

    def search(
        self,
        texts: Sequence[str],
        images: str | os.PathLike | Iterable[str | os.PathLike],
        k: int = 5,
    ) -> list[list[tuple[Path, float]]]:
        """Return the image files that fit each text best with their cosines, best first.

        Args:
            texts: what to look for.
            images: a folder, whose image files and those below it are looked through, or paths of
                files. Those that cannot be read are left out, and how many is said.
            k: files wanted for each text; all where there are fewer.

        Raises:
            FileNotFoundError: if there is no such folder.
            ValueError: for a URL, no texts, k below 1, or where not one image can be read.
        """
        texts = texts if isinstance(texts, str) else list(texts)  # Which `encode_text` refuses.
        if k < 1 or not texts:
            raise ValueError(f"found {len(texts)} texts and k={k}: both must be at least 1")
        files, found = image_files(images), []
        shown = progress(files, len(files), "images") if len(files) >= WORTH_PROGRESS else files
        text = self.encode_text(texts)
        rows = self.project_image(self.image_features(readable(shown, self.transform, found)))
        if not found:
            raise ValueError(f"not one of {len(files)} images can be read")
        if left_out := len(files) - len(found):
            say(f"{left_out} of {len(files)} images cannot be read and are left out")
        similar, places = nearest_rows(text, rows, min(k, len(found)), self.mesh)
        return [
            [(found[place], float(cosine)) for place, cosine in zip(*each, strict=True)]
            for each in zip(places, similar, strict=True)
        ]

    def transform(self, image: AnyImage) -> np.ndarray:
        """Return an image as the model sees it, uint8 [image_size, image_size, 3].

        Raises:
            ValueError: for what is no image, see `given_images.as_rgb`.
        """
        array = as_rgb(image)
        if self.fit == "crop" and self.resize is not None:
            return resize_as(array, self.image_size, *self.resize)
        return image_functions.evaluation_transform(array, self.image_size, fit=self.fit)

    def image_features(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """Return tower features [N, width] of transformed images, taken as they are needed."""
        return _joined(self.image_batches(images), self.image_width)

    def image_batches(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the same a batch at a time; the next one is gathered while it is computed."""
        return self._in_batches(self._compiled.image_features, ((image,) for image in images))

    def text_features(self, texts: Sequence[str]) -> np.ndarray:
        """Return tower features [N, width] of texts."""
        return self.token_features(zip(*self.tokenizer(texts), strict=True))

    def token_features(self, rows: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Return tower features [N, width] of rows of tokens and mask, [max_tokens] each."""
        return _joined(self.token_batches(rows), self.text_width)

    def token_batches(self, rows: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[np.ndarray]:
        """Yield the same a batch at a time, as `image_batches`."""
        return self._in_batches(self._compiled.text_features, rows)

    def project_image(self, features: np.ndarray) -> np.ndarray:
        """Return image tower features [N, width] -> unit embeddings [N, embed_dim]."""
        return np.asarray(self._compiled.project_image(self.variables, features))

    def project_text(self, features: np.ndarray) -> np.ndarray:
        """Return text tower features [N, width] -> unit embeddings [N, embed_dim]."""
        return np.asarray(self._compiled.project_text(self.variables, features))

    def _in_batches(
        self,
        run: JittedPart,
        rows: Iterable[tuple[np.ndarray, ...]],
        smaller: Sequence[int] = (),
    ) -> Iterator[np.ndarray]:
        """Apply `run` to zero-padded batches of rows and yield the results without the padding.

        Batches have `batch_size` rows, or the fewest of the `smaller` sizes that hold what is
        left; all devices have as many. While a batch is computed, the next one is gathered.
        """
        devices = self.mesh.devices.size
        sizes = [size for size in smaller if size < self.batch_size] + [self.batch_size]
        sizes = [-(-size // devices) * devices for size in sizes]
        rows = iter(rows)
        computed: tuple[jax.Array, int] | None = None
        while batch := list(itertools.islice(rows, sizes[-1])):
            size = next(size for size in sizes if size >= len(batch))
            columns = [_stack(column, size) for column in zip(*batch, strict=True)]
            placed = [sharding.put_rows(self.mesh, column) for column in columns]
            started = run(self.variables, *placed), len(batch)
            if computed is not None:
                yield np.asarray(computed[0])[: computed[1]]
            computed = started
        if computed is not None:
            yield np.asarray(computed[0])[: computed[1]]


def _stack(rows: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Return rows as one array of `size`, with zeros behind them."""
    stacked = np.zeros((size, *rows[0].shape), rows[0].dtype)
    np.stack(rows, out=stacked[: len(rows)])
    return stacked


def _joined(batches: Iterable[np.ndarray], width: int) -> np.ndarray:
    return np.concatenate([np.zeros((0, width), np.float32), *batches])


def make_encoder(
    config: ConfigDict,
    model: FunctionalModel,
    variables: Variables,
    mesh: Mesh,
    tokenizer_folder: Path | None = None,
) -> Encoder:
    """Return the encoder of a config; its tokenizer is `find_tokenizer`'s where none is given."""
    folder = tokenizer_folder or find_tokenizer(config)
    module = model.bind(variables)
    tokenizer = Tokenizer(
        folder,
        config.data.max_tokens,
        config.model.text.mask_token,
        **_text_transform(module.text),
    )
    refuse_unknown_tokens(tokenizer, module.text, masks=module.heads.tokens)
    return Encoder(
        model=model,
        variables=variables,
        tokenizer=tokenizer,
        tokenizer_folder=folder,
        mesh=mesh,
        image_size=config.data.image_size,
        fit=config.data.fit,
        batch_size=config.evaluate.batch_size,
        scale_bounds=objectives.make_method(**config.objective).scale_bounds,
    )


def _text_transform(text_tower: nnx.Module) -> dict[str, Any]:
    """Return what is done to captions for a text tower, which may have been trained so."""
    settings = text_tower.config
    return {
        "cleaning": getattr(settings, "cleaning", "none"),
        "strip_separator": getattr(settings, "strip_separator", False),
    }


def refuse_unknown_tokens(tokenizer: Tokenizer, text_tower: nnx.Module, *, masks: bool) -> None:
    """Refuse a tokenizer with ids that the text tower has no embedding for (ValueError)."""
    needed = tokenizer.num_tokens_with_mask if masks else tokenizer.vocabulary_size
    if needed > text_tower.config.vocab_size:
        raise ValueError(
            f"config.model.text: the tokenizer has {needed} tokens{' with the mask' * masks}, the "
            f"tower embeddings for {text_tower.config.vocab_size}: it must be another tokenizer, "
            f"or overrides.vocab_size={needed}"
        )


def keep_description(encoder: Encoder, workdir: Path) -> None:
    """Put into a workdir what `load` needs beside a checkpoint: the tokenizer and model.json."""
    copy_tokenizer(encoder.tokenizer_folder, workdir / TOKENIZER_FOLDER)
    write_json(workdir / MODEL_FILE, blueprint.describe(encoder.model.bind(encoder.variables)))


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer's files; its class may be said by the config.json beside them."""
    if source.resolve() == target.resolve() or jax.process_index() != 0:
        return
    target.mkdir(parents=True, exist_ok=True)
    for pattern in ("config.json", *TOKENIZER_FILES):
        for file in filter(Path.is_file, source.glob(pattern)):
            shutil.copyfile(file, target / file.name)


def load(path: str | Path, *, step: int | None = None) -> Encoder:
    """Return a trained model, from a workdir's checkpoint or a folder of `Encoder.save`.

    Neither needs the pretrained weights that training began with. Where the latest checkpoint is
    damaged, that is said, and the one before is used. A checkpoint with two towers and its
    tokenizer beside it, by its path or its name in the Hugging Face Hub, is a model too: CLIP,
    SigLIP and whatever else `otter_jax.models.from_pretrained` reads. "quickstart" and
    "otter_rn50_small" are finished runs of these presets, which come with the package; what is
    frozen of their towers is that of the extra [quickstart].

    Args:
        path: of the workdir, folder or checkpoint; or a name in the Hub; or "quickstart".
        step: of a workdir, the checkpoint to take; the latest if None, or the best where the run
            has a config.checkpoint.best. config.checkpoint.keep says how many there are.

    Raises:
        FileNotFoundError: if it is neither, or has no finished checkpoint, or none of this step.
        ValueError: if the folder, or every checkpoint that is asked for, is damaged.
    """
    if not str(path):
        raise ValueError("the path of a model is empty")
    if step is not None and (not isinstance(step, int) or isinstance(step, bool)):
        raise ValueError(f"step={step!r}: it must be a whole number")
    folder = Path(path).expanduser()
    if step is not None and not _is_workdir(folder):
        raise ValueError(f"{path} is no workdir: it has no checkpoint of step {step}")
    if export.is_exported(folder):
        return _load_exported(folder)
    if not _is_workdir(folder):
        is_ours = str(path) in published.published_names()
        return _load_published(str(path)) if is_ours else _load_two_towers(path)
    return _load_workdir(folder, step)


def _load_workdir(folder: Path, step: int | None) -> Encoder:
    """Return the model of a run; arguments and errors are those of `load`."""
    from otter_jax import config
    from otter_jax.runs import best_step, checkpoints

    settings = config.load_config(folder / "config.json")
    mesh = sharding.make_mesh()
    described = (folder / MODEL_FILE).is_file()
    if described:
        module = blueprint.build(
            read_json(folder / MODEL_FILE),
            dtype=np.dtype(settings.model.dtype),
            trainable=_trainable_parts(settings),
        )
    else:  # Of an earlier version.
        module = build_module(settings)
    model, template = dual_encoder.split(module)
    with checkpoints.Checkpoints(folder / "checkpoints") as saved:
        _, variables = saved.restore_variables(
            sharding.describe_state(mesh, template, fsdp=settings.fsdp),
            best_step.best_step(settings, folder) if step is None else step,
        )
    tokenizer_folder = folder / TOKENIZER_FOLDER if described else None
    return make_encoder(settings, model, variables, mesh, tokenizer_folder)


def refuse_no_model(path: str | Path) -> None:
    """Refuse a path or name at which there is nothing to `load`, without loading anything.

    Raises:
        FileNotFoundError, ModuleNotFoundError: as `load`.
    """
    folder = Path(path).expanduser()
    if not str(path):
        raise ValueError("the path of a model is empty")
    if str(path) in published.published_names():
        return
    if not export.is_exported(folder) and not _is_workdir(folder):
        find_pretrained(path)


def config_of(path: str | Path) -> ConfigDict | None:
    """Return the config of the run that made a model, as `load` takes it; None where none did."""
    from otter_jax import config

    folder = Path(path).expanduser()
    if not _is_workdir(folder) and str(path) in published.published_names():
        folder = published.FOLDER / str(path)
    return config.load_config(folder / "config.json") if _is_workdir(folder) else None


def _is_workdir(folder: Path) -> bool:
    """Return whether a run has written the folder: its config.json is not a model's."""
    path = folder / "config.json"
    return path.is_file() and "objective" in read_json(path)


def _load_published(name: str) -> Encoder:
    """Return a model that comes with the package, whose towers are other packages'."""
    settings, trained = published.read_published(name)
    model, variables = dual_encoder.split(build_module(settings))
    mesh = sharding.make_mesh()
    variables = sharding.put_state(mesh, published.with_published(variables, trained))
    return make_encoder(settings, model, variables, mesh)


def _load_two_towers(path: str | Path) -> Encoder:
    """Return the model of a checkpoint with two towers, by its path or its name in the Hub."""
    try:
        location = find_pretrained(path)
        module = pretrained.from_pretrained(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} is neither a workdir nor a folder of Encoder.save, nor a checkpoint of two "
            f"towers: {error}"
        ) from None
    if not isinstance(module, dual_encoder.DualEncoder):
        raise ValueError(
            f"{path} holds one tower ({type(module).__name__}), and no pair of an image and a text "
            "tower; otter_jax.models.from_pretrained reads it"
        )
    folder = location if location.is_dir() else location.parent
    longest = getattr(
        module.text.config, "longest_text", module.text.config.max_position_embeddings
    )
    mesh = sharding.make_mesh()
    model, variables = dual_encoder.split(module)
    return Encoder(
        model=model,
        variables=sharding.put_state(mesh, variables),
        tokenizer=Tokenizer(folder, min(longest, MOST_TOKENS), **_text_transform(module.text)),
        tokenizer_folder=folder,
        mesh=mesh,
        image_size=getattr(module.image.config, "image_size", 224),
        scale_bounds=(None, None),  # The scale is taken as it is.
    )


def _load_exported(folder: Path) -> Encoder:
    module, data = export.load_dual_encoder(folder)
    mesh = sharding.make_mesh()
    model, variables = dual_encoder.split(module)
    # Folders of an earlier version have the tokenizer in one of its own.
    older = folder / TOKENIZER_FOLDER
    tokenizer_folder = older if older.is_dir() else folder
    return Encoder(
        model=model,
        variables=sharding.put_state(mesh, variables),
        tokenizer=Tokenizer(tokenizer_folder, data["max_tokens"], **_text_transform(module.text)),
        tokenizer_folder=tokenizer_folder,
        mesh=mesh,
        image_size=data["image_size"],
        fit=data["fit"],
        # Folders of an earlier version do not say.
        scale_bounds=tuple(data.get("scale_bounds", Encoder.scale_bounds)),
    )
