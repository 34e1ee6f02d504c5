"""What each method of the second study trains on: which pairs, how far trusted, which captions.

A judge sees the training pairs of a run with their wrong captions. Only the oracle knows which are
wrong, and LEMoN, which does not say how many to drop, how many are.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax
from scipy.special import logsumexp

from otter_jax import objectives
from otter_jax.embedding import caption_repair, trust, trust_rounds
from otter_jax.embedding.trust import Trust, unit_rows
from otter_jax.models.dual_encoder import Arrays, FunctionalModel, Variables
from studies import methods, rivals, runs
from studies.methods import BASELINE, METHODS, Setting

WARM_UP_EPOCHS = 2  # After which pairs with small losses are taken for right.
IMPACT_RATE = 1e-2  # Of the step whose impact is measured: that of the methods' first trial.
ROUNDS = 2
MOST_CONTRASTED = 12_000  # Pairs whose losses are taken among each other.
MOST_KEPT = 6  # Judgements in memory: trials come back to those of the splits.


@dataclasses.dataclass(frozen=True)
class Case:
    """The training pairs of one run.

    Attributes:
        image: features of their images as the tower gives them, float32 [n, d].
        data: with the captions of the setting.
        seed: of the run, and of what a judge draws.
        folder: where estimates are kept.
        judged: what the last judges have said, which are shared by cases.
    """

    image: np.ndarray
    data: runs.Data
    seed: int
    folder: Path
    judged: dict[tuple, runs.Data]

    @property
    def wrong(self) -> np.ndarray:
        """Which captions are another image's, bool [n]."""
        return self.data.caption_of != self.data.train

    def judged_by(self, name: str) -> runs.Data:
        """Return what the judge `name`, a key of `JUDGES`, says; that of the last cases is kept."""
        kept = self.judged
        key = (name, self.seed, self.data.train.tobytes(), self.data.caption_of.tobytes())
        if key not in kept:
            while len(kept) >= MOST_KEPT:
                del kept[next(iter(kept))]
            kept[key] = JUDGES[name](self)
        return kept[key]

    def estimate(self, rounds: int) -> Trust:
        """Return the pairs' estimated trust, from the folder if it is there."""
        said = repr((rounds, self.seed)).encode()
        key = hashlib.sha256(self.data.train.tobytes() + self.data.caption_of.tobytes() + said)
        path = self.folder / f"{key.hexdigest()[:32]}.npz"
        if not path.is_file():
            found = trust_rounds.estimate_in_rounds(
                self.image, self.data.text, rounds=rounds, seed=self.seed % 256
            )
            self.folder.mkdir(exist_ok=True)
            trust.write(path, key.hexdigest(), found, self.data.train)
        return trust.read(path, key.hexdigest())[0]


def keep_right(case: Case) -> runs.Data:
    """Train on the right pairs alone: what can be reached."""
    return case.data._replace(pool=np.flatnonzero(~case.wrong))


def drop_estimated(case: Case) -> runs.Data:
    """Drop as many as are estimated to be wrong, those with the least statistic."""
    found = case.estimate(0)
    return _drop(case, -found.statistic, found.share_wrong)


def drop_by_lemon(case: Case) -> runs.Data:
    """Drop as many as are wrong, those with the greatest LEMoN score.

    The score needs distances between image and caption, of towers that know each other; these do
    not, so that it is given those of maps that all pairs have taught alike, cross-fitted as in
    `trust_rounds`.
    """
    image, text = case.image, case.data.text
    found = trust.find_neighborhoods(image, text, seed=case.seed % 256)
    fold = trust_rounds.assign_folds(found.keys, trust_rounds.FOLDS)
    maps = trust_rounds.fit_maps(found.sides, fold, np.ones(len(fold)))
    own = np.arange(len(fold))
    cosines = trust_rounds.predicted_agreement(found.sides, maps, fold, own, own).mean(axis=1)
    return _drop(case, rivals.lemon_score(image, text, 1.0 - cosines), case.wrong.mean())


def _drop(case: Case, score: np.ndarray, share: float) -> runs.Data:
    kept = np.argsort(score, kind="stable")[: round((1.0 - share) * len(score))]
    return case.data._replace(pool=np.sort(kept))


def trust_small_losses(case: Case) -> runs.Data:
    """Trust pairs whose loss is small after a short training on all of them."""
    trainer = _warm_up_trainer(case.data)
    variables = trainer.train(case.data, case.seed)
    losses = _losses_of_all(trainer, variables, case.data)
    return case.data._replace(trust=rivals.clean_probability(losses).astype(np.float32))


def trust_by_impact(case: Case) -> runs.Data:
    """Trust pairs by what a step on them does to a memory bank of clean ones (NPC).

    The bank is found by small losses after a short training, and the step is Adam's from rest.
    """
    trainer, data, batch = _warm_up_trainer(case.data), case.data, Setting().batch_size
    variables = trainer.train(data, case.seed)
    losses, everyone = _losses_of_all(trainer, variables, data), np.arange(len(data.train))
    clean = rivals.memory_bank(rivals.clean_probability(losses))
    entries = rivals.memory_entries(case.image, data.text, clean)
    weight = np.empty(len(everyone))
    order = np.random.default_rng((7, case.seed)).permutation(everyone)
    filled = np.resize(order, -(-len(order) // batch) * batch)  # The last batch takes first ones.
    for rows in filled.reshape(-1, batch):
        image, text = data.image[data.train[rows]], data.text[rows]
        moved = _step(trainer, variables, image, text)
        before, after = (
            np.stack([_losses(trainer, each, data, own) for own in entries[rows].T], axis=1)
            for each in (variables, moved)
        )
        weight[rows] = rivals.confidence(before, after)
    return data._replace(trust=rivals.weigh_with_memory(weight, entries).astype(np.float32))


def _losses_of_all(trainer: runs.Trainer, variables: Variables, data: runs.Data) -> np.ndarray:
    """Return each pair's InfoNCE among all pairs; of many, among equally large parts of them."""
    everyone = np.arange(len(data.train))
    parts = np.array_split(everyone, -(-len(everyone) // MOST_CONTRASTED))
    return np.concatenate([_losses(trainer, variables, data, part) for part in parts])


def _losses(
    trainer: runs.Trainer, variables: Variables, data: runs.Data, rows: np.ndarray
) -> np.ndarray:
    """Return InfoNCE of some pairs among each other, [n], the mean of both directions."""
    image = trainer.project(variables, data.image[data.train[rows]])
    logits = float(trainer.scale(variables)) * image @ unit_rows(data.text[rows]).T
    sums = logsumexp(logits, axis=1) + logsumexp(logits, axis=0)
    return sums / 2 - np.diagonal(logits)


def _step(
    trainer: runs.Trainer, variables: Variables, image: np.ndarray, text: np.ndarray
) -> Variables:
    """Return what one step of InfoNCE on a batch makes of a head."""
    params = _descend(trainer.model, trainer.options, variables, image, text)
    return variables._replace(params=params)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _descend(
    model: FunctionalModel,
    method: objectives.Method,
    variables: Variables,
    image: jax.Array,
    text: jax.Array,
) -> Arrays:
    def loss(params: Arrays) -> jax.Array:
        head = model.bind(variables._replace(params=params)).image_projection
        found = objectives.Embeddings(head(image), text)
        scales = objectives.LogScales(params["log_scale"], params["log_scale"])
        return objectives.total_loss(method, found, None, scales)[0]

    params, optimizer = variables.params, optax.adam(IMPACT_RATE)
    updates, _ = optimizer.update(jax.grad(loss)(params), optimizer.init(params))
    return optax.apply_updates(params, updates)


def trust_rounds_of(case: Case) -> runs.Data:
    """Trust as estimated in rounds."""
    return case.data._replace(trust=case.estimate(ROUNDS).alpha)


def repair(case: Case) -> runs.Data:
    """Repair captions by the trust estimated in rounds."""
    found = caption_repair.repair(case.image, case.data.text, case.estimate(ROUNDS).alpha)
    return case.data._replace(text=found.text, trust=found.trust)


def _warm_up_trainer(data: runs.Data) -> runs.Trainer:
    return _make_warm_up_trainer(runs.Shapes.of(data))


@functools.cache
def _make_warm_up_trainer(shapes: runs.Shapes) -> runs.Trainer:
    hyperparameters = methods.hyperparameters(METHODS[BASELINE], 0) | {"epochs": WARM_UP_EPOCHS}
    return runs.Trainer(METHODS[BASELINE], Setting(), hyperparameters, shapes)


JUDGES: dict[str, Callable[[Case], runs.Data]] = {
    "right": keep_right,
    "dropped": drop_estimated,
    "lemon": drop_by_lemon,
    "small losses": trust_small_losses,
    "impact": trust_by_impact,
    "rounds": trust_rounds_of,
    "repair": repair,
}
