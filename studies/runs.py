"""One run of the study: a head on frozen features, trained by the package's own train step."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from otter_jax import objectives
from otter_jax.config import default_config
from otter_jax.embedding import trust
from otter_jax.evaluation.ranks import best_true_ranks
from otter_jax.models import dual_encoder
from otter_jax.models.dual_encoder import Arrays, DualEncoder, FunctionalModel, Variables
from otter_jax.models.projections import make_projection
from otter_jax.training.optimizers import make_optimizer, make_schedule
from otter_jax.training.state import initial_state, state_places
from otter_jax.training.step import Learner, StepSettings, make_train_step
from studies import rivals
from studies.collection import NUM_SPLITS, Collection, make_split, shuffled_captions
from studies.methods import Method, Setting

KS = (1, 5, 10)
COMPONENTS = 512
TEXT_WIDTH = 384
WARMUP_SHARE = 0.1
NUM_PAIRS = 4_222  # To train on; the splits have that many, or one more.


class FeatureTower(nnx.Module):
    """Stands for a frozen tower, whose features come with the batch."""

    def __init__(self, width: int):
        """Make a layer of `width` features."""
        self.width = width


class Data(NamedTuple):
    """What is trained on, n pairs, and what it is tested with afterwards."""

    image: np.ndarray  # float32 [all pairs, COMPONENTS].
    class_image: np.ndarray  # float32 [m, COMPONENTS], the other style.
    train: np.ndarray  # int [n], numbers of the training images
    caption_of: np.ndarray  # int [n], and of the pairs whose captions they are given.
    text: np.ndarray  # float32 [n, e]: these captions, or what stands for them.
    pool: np.ndarray  # int: places in `train` of the pairs that batches are drawn from.
    trust: np.ndarray | None  # float32 [n], where the method asks for it.


class Shapes(NamedTuple):
    """How much a trainer is compiled for."""

    pairs: int
    image_width: int
    text_width: int

    @classmethod
    def of(cls, data: Data) -> "Shapes":
        """Return those of some data."""
        return cls(len(data.train), data.image.shape[1], data.text.shape[1])


class Ranks(NamedTuple):
    """The best rank of a true answer, from 0, for every query; KS[-1] stands for worse."""

    image_to_text: np.ndarray
    text_to_image: np.ndarray
    zero_shot: np.ndarray

    def scores(self) -> dict[str, float]:
        """Return the study's six metrics, in percent; recall is the mean of both directions."""
        hits = {k: [100 * float((ranks < k).mean()) for ranks in self] for k in KS}
        recalls = {f"recall@{k}": (hits[k][0] + hits[k][1]) / 2 for k in KS}
        return recalls | {f"hit@{k}": hits[k][2] for k in KS}


def principal_components(rows: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return features [n, d] in the principal components of the training images' `rows`.

    All are divided by one number that makes the mean square 1, and so keep their proportions.
    """
    rows = rows.astype(np.float64)
    mean = rows.mean(axis=0)
    axes = np.linalg.eigh((rows - mean).T @ (rows - mean))[1][:, ::-1][:, :COMPONENTS]
    axes *= np.sign(axes.sum(axis=0))  # An eigenvector's sign is arbitrary.
    axes /= np.sqrt(np.mean(((rows - mean) @ axes) ** 2))
    return tuple(((features - mean) @ axes).astype(np.float32) for features in others)


class Pairs:
    """The collection as the runs see it; what several of them share is computed once."""

    def __init__(self, collection: Collection):
        """Make the splits, and the principal components of each."""
        self.collection = collection
        self.splits = [make_split(collection, number) for number in range(NUM_SPLITS)]
        trains = [split.train[:NUM_PAIRS] for split in self.splits]
        both = (collection.image, collection.class_image)
        self.images = [principal_components(collection.image[train], *both) for train in trains]
        self.judged: dict[tuple, Data] = {}  # See judges.py.
        self._trust: dict[bytes, np.ndarray] = {}

    def data(self, setting: Setting, number: int, seed: int, *, uses_trust: bool) -> Data:
        """Return the pairs of a split, with wrong captions that `seed` draws."""
        train = self.splits[number].train[:NUM_PAIRS]
        groups = self.collection.folder[train] * setting.within_folder
        order, _ = shuffled_captions(groups, setting.wrong, np.random.default_rng((4, seed)))
        caption_of = train[order]
        alpha = self._estimate(train, caption_of, seed) if uses_trust else None
        text, everyone = self.collection.text[caption_of], np.arange(len(train))
        return Data(*self.images[number], train, caption_of, text, everyone, alpha)

    def _estimate(self, train: np.ndarray, caption_of: np.ndarray, seed: int) -> np.ndarray:
        """Estimate trust from the training pairs and no others."""
        key = train.tobytes() + caption_of.tobytes() + bytes([seed % 256])
        if key not in self._trust:
            images, texts = self.collection.image[train], self.collection.text[caption_of]
            self._trust[key] = trust.estimate(images, texts, seed=seed).alpha
        return self._trust[key]


class Trainer:
    """Trains with one method, setting and choice of hyperparameters; it is compiled once."""

    def __init__(
        self,
        method: Method,
        setting: Setting,
        hyperparameters: Mapping[str, Any],
        shapes: Shapes | None = None,
    ):
        """Read the hyperparameters, which are those of `methods.hyperparameters`.

        Shapes are those of the embedded clip art unless they are given.
        """
        self.shapes = shapes or Shapes(NUM_PAIRS, COMPONENTS, TEXT_WIDTH)
        hyper = dict(hyperparameters)
        self.cap = hyper.pop("trust_cap", 1.0)
        falls = [hyper.pop(name, None) for name in ("first_alpha", "last_alpha")]
        config = default_config()
        config.batch_size = setting.batch_size
        config.optimizer.name = "adamw"
        config.optimizer.learning_rate = hyper.pop("learning_rate")
        config.optimizer.weight_decay = hyper.pop("weight_decay")
        config.teacher.decay = hyper.pop("teacher_decay", config.teacher.decay)
        steps = self.shapes.pairs * hyper.pop("epochs") // setting.batch_size
        self.shape = (steps, setting.batch_size)
        config.optimizer.warmup_steps = int(WARMUP_SHARE * self.shape[0])
        # Of every step, where alpha is none of the pairs' own.
        self.alphas = None if None in falls else rivals.progressive_alpha(self.shape, *falls)
        self.head = setting.head
        self.options = objectives.make_method(method.objective, **{**method.options, **hyper})
        schedule = make_schedule(config, self.shape[0])
        optimizer = make_optimizer(config, schedule)
        mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
        self.model, variables = self.make_model(0)
        settings, uses_teacher = StepSettings.of(config), self.options.uses_teacher
        learner = Learner(self.model, self.options, optimizer, schedule, settings, mesh)
        state = initial_state(variables, optimizer, uses_teacher=uses_teacher)
        step = make_train_step(learner, state_places(mesh, state, fsdp=False))

        def train(variables: Variables, pairs: Arrays, order: jax.Array, own: Arrays) -> Variables:
            state = initial_state(variables, optimizer, uses_teacher=uses_teacher)

            def one_step(state: Any, given: tuple[jax.Array, Arrays]) -> tuple[Any, None]:
                rows, of_step = given
                batch = {name: array[rows] for name, array in pairs.items()}
                return step(state, batch | of_step)[0], None

            return jax.lax.scan(one_step, state, (order, own))[0].variables

        self._train = jax.jit(train)

    def make_model(self, seed: int) -> tuple[FunctionalModel, Variables]:
        """Return a fresh head for images; texts keep their features, as in the quickstart."""
        rngs, (_, image_width, width) = nnx.Rngs(seed), self.shapes
        module = DualEncoder(
            FeatureTower(image_width),
            FeatureTower(width),
            make_projection(self.head, image_width, width, rngs=rngs),
            make_projection("none", width, width, rngs=rngs),
            initial_scale=self.options.initial_scale,
            initial_bias=self.options.initial_bias,
        )
        return dual_encoder.split(module)

    def train(self, data: Data, seed: int) -> Variables:
        """Train and return the variables; the seed draws the head and the order of the pairs.

        The number of steps does not depend on how many pairs are in the pool.
        """
        rng, needed = np.random.default_rng((5, seed)), np.prod(self.shape)
        epochs = -(-needed // len(data.pool))
        order = np.concatenate([rng.permutation(data.pool) for _ in range(epochs)])
        pairs = {"image_features": data.image[data.train], "text_features": data.text}
        if self.estimates:
            pairs["trust"] = np.float32(self.cap) * data.trust
        own = {} if self.alphas is None else {"trust": self.alphas}
        _, variables = self.make_model(seed)
        return self._train(variables, pairs, order[:needed].reshape(self.shape), own)

    @property
    def estimates(self) -> bool:
        """Whether each pair's own trust is asked for."""
        return self.options.uses_trust and self.alphas is None

    def project(self, variables: Variables, features: np.ndarray) -> np.ndarray:
        """Return the trained head's unit embeddings of images, float32 [n, 384]."""
        return np.asarray(_project(self.model, variables, features))

    def scale(self, variables: Variables) -> float:
        """Return the learnt factor of the similarities."""
        bounds = self.options.scale_bounds
        return float(objectives.scale_from_log(variables.params["log_scale"], *bounds))

    def ranks(
        self,
        variables: Variables,
        data: Data,
        collection: Collection,
        pairs: np.ndarray,
        images: np.ndarray,
    ) -> Ranks:
        """Rank some pairs among each other, and images of the other style among all its classes."""
        captions, classes = map(_unit, (collection.text[pairs], collection.class_text))
        found = self.project(variables, data.image[pairs])
        other = self.project(variables, data.class_image[images])
        own = np.arange(len(pairs))[:, None]
        queries = (
            (found, captions, own),
            (captions, found, own),
            (other, classes, collection.labels[images]),
        )
        ranks = (best_true_ranks(*each, limit=KS[-1]) for each in queries)
        return Ranks(*(each.astype(np.uint8) for each in ranks))


@functools.partial(jax.jit, static_argnums=0)
def _project(model: FunctionalModel, variables: Variables, features: jax.Array) -> jax.Array:
    return objectives.normalize(model.bind(variables).image_projection(features))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
