"""Shows what is in data: otter-jax inspect --data=SPEC [--data=SPEC] [--out=DIR].

Counts pairs, sizes, caption lengths, exact copies, and images that cannot be read, each with its
reason; prints ten captions as they are trained on, and says what makes them look like none. With
--out it writes inspect.json, histograms.png and samples.png. With --model it also says how surely
that model finds each image's caption among those of a batch, which is OTTER's measure of how noisy
a data set is. With --trust it estimates how many captions are wrong, and with --out which ones:
trust.parquet (trust.csv without pyarrow), trust.png, the pairs that are trusted least and most, and
keep.txt, the keys of those that are trusted enough, which `config.data.keep` and `otter-jax
prepare --keep` take.
"""

import argparse
import ast
import csv
import importlib.util
import tempfile
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from otter_jax.commands.command_line import (
    Parser,
    ending_in_one_line,
    hearing_termination,
    make_folder,
    path_of,
    stopping_at_once,
)
from otter_jax.data import images, statistics
from otter_jax.data.caption_checks import SHOWN, doubts, sample_captions
from otter_jax.data.kept_pairs import KEEP_FILE, write_keys
from otter_jax.data.records import read_in_order, read_records
from otter_jax.data.sources import Source, open_source, remarks, skipped_files

SAMPLES, COLUMNS, THUMBNAIL = 24, 6, 160
KEEP_ABOVE = 0.5  # How much a pair is trusted at least that is kept, unless it is said.


def main(arguments: Sequence[str] | None = None) -> None:
    """Inspect what the command line says; what is wrong with it ends in one line."""
    options = parse(arguments)
    with ending_in_one_line("stopped; --limit=N looks at a random part"), hearing_termination():
        inspect(options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(prog="otter-jax inspect")
    parser.add_argument(
        "--data",
        required=True,
        action="append",
        metavar="SPEC",
        help="as in config.data.train; may be given several times",
    )
    parser.add_argument("--out", type=path_of, help="folder for inspect.json and pictures")
    parser.add_argument("--model", type=path_of, help="workdir of a run, or an exported model")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="estimate which captions are wrong, by the towers of --model or the quickstart's",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=0,
        metavar="N",
        help="estimate trust again N times, by what other pairs teach; 2 are enough; default: 0",
    )
    parser.add_argument(
        "--keep_above",
        type=float,
        metavar="TRUST",
        help="how much a pair of keep.txt is trusted at least, in [0, 1]; default: 0.5",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="look at N pairs, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the random draws; default: 0")
    parser.add_argument(
        "--batch_size", type=int, default=512, help="of the match probabilities; default: 512"
    )
    return parser.parse_args(arguments)


def inspect(options: argparse.Namespace) -> dict[str, Any]:
    """Print, write and return the findings.

    Raises:
        ValueError: For a SPEC, model or number that makes no sense.
        FileNotFoundError: For a path at which there is nothing.
    """
    # The rest of the package knows how to show progress, to draw and to load models. It is imported
    # where this program needs it, so that the library below, which others import, does without.
    with stopping_at_once():
        from otter_jax.json_files import write_json
        from otter_jax.runs.workdir import refuse_unwritable
        from otter_jax.terminal import progress, say

    _refuse_bad_options(options)  # Before the long part.
    if options.out is not None:
        refuse_unwritable(options.out, "--out")
    encoder = _load(options.model)
    source = open_source(read_specs(options.data), progress=progress)
    for remark in remarks(source):
        say(remark)
    numbers = statistics.choose(len(source), options.limit, options.seed)
    towers = None
    if options.trust:
        _refuse_too_few(numbers, options.rounds)
        towers = encoder or _quickstart_encoder()
    if options.out is not None:
        make_folder("--out", options.out)
    tally = statistics.Tally()
    read = read_in_order(source, map(int, numbers))
    for number, record in progress(read, len(numbers), "inspect"):
        tally.add_record(number, record)
    found = _look_at(source, len(numbers), tally)
    shown = "\n".join(f"  {text!r:.100}" for text in found["captions"])
    say(f"captions as they are trained on:\n{shown}")
    order = np.random.default_rng(options.seed).permutation(np.array(tally.readable, int))
    if encoder is not None:
        found["match probability"] = _match_probability(encoder, source, order, options.batch_size)
    if towers is not None:
        # With JAX, which a look at the data alone does not need.
        from otter_jax.embedding import trust

        pairs, estimate = _estimate_trust(towers, source, tally.readable, options)
        found["wrong pairs"] = {"estimated share": estimate.share_wrong}
        say(trust.describe_trust(estimate))
    say(report(found))
    if options.out is not None and towers is not None:
        write_trust(options.out, source, pairs, estimate)
        say(_keep_trusted(options, pairs["key"], estimate.alpha, len(source) - len(numbers)))
    if options.out is not None:
        write_json(options.out / "inspect.json", found)
        draw_histograms(options.out / "histograms.png", tally)
        draw_samples(options.out / "samples.png", source, order[:SAMPLES], encoder)
        say(f"written to {options.out}: inspect.json, histograms.png, samples.png")
    return found


def _keep_trusted(
    options: argparse.Namespace, keys: Sequence[str], alpha: np.ndarray, unseen: int
) -> str:
    """Write the keys of pairs that are trusted enough; return what to say of all that is written.

    Args:
        options: of the command line.
        keys: of the pairs.
        alpha: [n], how far each is trusted, in [0, 1].
        unseen: how many pairs --limit passed over.
    """
    kept = [key for key, trust in zip(keys, alpha, strict=True) if trust >= options.keep_above]
    write_keys(options.out / KEEP_FILE, kept)
    others = f" (the {unseen:,} that --limit passed over are not among them)" if unseen else ""
    return (
        f"written to {options.out}: {', '.join(trust_files())}, and the {len(kept):,} pairs "
        f"that are trusted by {options.keep_above:g} or more{others}; to train on those alone: "
        f"--config.data.keep={options.out / KEEP_FILE}"
    )


def _refuse_bad_options(options: argparse.Namespace) -> None:
    """Refuse options that cannot be, or go with others that are not given (ValueError)."""
    if options.batch_size < 2:
        raise ValueError(f"--batch_size={options.batch_size}; it must be at least 2")
    if options.keep_above is None:
        options.keep_above = KEEP_ABOVE
    elif not options.trust or options.out is None:
        raise ValueError(f"--keep_above={options.keep_above} goes with --trust and --out=FOLDER")
    if not 0 <= options.keep_above <= 1:
        raise ValueError(f"--keep_above={options.keep_above}; it must lie in [0, 1]")
    if options.rounds < 0 or (options.rounds and not options.trust):
        raise ValueError(f"--rounds={options.rounds} goes with --trust, and must not be negative")
    if options.seed < 0:
        raise ValueError(f"--seed={options.seed}; it must not be negative")


def _look_at(source: Source, inspected: int, tally: statistics.Tally) -> dict[str, Any]:
    """Return what can be said without any model."""
    sampled = sample_captions(source)
    return {
        "data": source.name,
        "pairs": len(source),
        "inspected": inspected,
        "skipped": dict(source.skipped),
        "skipped_files": skipped_files(source),
        "looks wrong": doubts(sampled),
        "captions": sampled[:: max(1, len(sampled) // SHOWN)][:SHOWN],
        **tally.summary(),
    }


def read_specs(arguments: Sequence[str]) -> str | list[str]:
    """Return what `open_source` takes: a SPEC, or several, each an argument or within a tuple."""
    specs: list[str] = []
    for argument in arguments:
        if argument.startswith(("(", "[")):
            try:
                specs += map(str, ast.literal_eval(argument))
            except (ValueError, SyntaxError, TypeError):
                raise ValueError(
                    f'--data={argument}: give --data=SPEC for each, or write \'("SPEC","SPEC")\''
                ) from None
        else:
            specs.append(argument)
    return specs[0] if len(specs) == 1 else specs


def report(found: dict[str, Any]) -> str:
    """Return the findings as lines of text, without the lists of captions and of what is bad."""
    lines = []
    for name, value in found.items():
        if name in ("unreadable", "skipped_files", "captions", "looks wrong"):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key} {_number(x)}" for key, x in value.items()) or "none"
        lines.append(f"{name:<19} {_number(value)}")
    return "\n".join(lines)


def draw_histograms(path: Path, tally: statistics.Tally) -> None:
    """Draw one histogram each of width, height, width / height, characters and words."""
    from matplotlib.figure import Figure

    columns = {**tally.columns, "width / height": tally.aspects()}
    figure = Figure(figsize=(3.2 * len(columns), 2.8), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, len(columns)), columns.items(), strict=True):
        # A few giants would hide the rest.
        high = np.quantile(values, 0.99) if len(values) else 1.0
        axes.hist(np.minimum(values, high), bins=40, color="#4a90c2")
        axes.set(title=name, yticks=[])
        axes.spines[["left", "right", "top"]].set_visible(False)
    figure.supxlabel("the largest 1 % are counted in the last bar", fontsize=9)
    figure.savefig(path, dpi=110)


def draw_samples(
    path: Path,
    source: Source,
    numbers: np.ndarray,
    encoder: Any,
    notes: Sequence[str] = ("",) * SAMPLES,
) -> None:
    """Draw a sheet of images as the model sees them (whole, without a model), with captions.

    Args:
        path: A .png file.
        source: The pairs.
        numbers: [n], which ones.
        encoder: The model, or None.
        notes: What to write before each caption.
    """
    from matplotlib.figure import Figure

    from otter_jax.pictures.figures import plain

    rows = max(1, -(-len(numbers) // COLUMNS))
    figure = Figure(figsize=(2.2 * COLUMNS, 2.9 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS).ravel()
    for axes in grid:
        axes.axis("off")
    records = read_records(source, [int(number) for number in numbers])
    for axes, record, note in zip(grid, records, notes, strict=False):
        fit = encoder.fit if encoder is not None else "pad"
        view = images.evaluation_transform(images.decode(record.image), THUMBNAIL, fit=fit)
        axes.imshow(view)
        caption = "\n".join(textwrap.wrap(note + plain(record.caption, 100), 30))
        axes.set_title(caption, fontsize=8, y=-0.06, va="top", parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # Captions of any script.
        figure.savefig(path, dpi=110)


def trust_files() -> tuple[str, ...]:
    """Return the names of what `write_trust` writes: a CSV where pyarrow is not installed."""
    suffix = "parquet" if importlib.util.find_spec("pyarrow") else "csv"
    return f"trust.{suffix}", "trust.png", "least_trusted.png", "most_trusted.png"


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Write columns of one length as Parquet or CSV, whichever the path ends in."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
        return
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)


def write_trust(folder: Path, source: Source, pairs: dict[str, Any], found: Any) -> None:
    """Write what was estimated of some pairs: table, histogram, and the pairs at both ends.

    Args:
        folder: Where to write.
        source: The pairs.
        pairs: `record` [n], numbers of some of them, and `key`, what they are called.
        found: `trust.Trust` of these.
    """
    from otter_jax.pictures.curves import draw_trust

    table, histogram, least, most = (folder / name for name in trust_files())
    write_table(table, {**pairs, "trust": found.alpha, "statistic": found.statistic})
    draw_trust(histogram, found)
    order = np.lexsort((found.statistic, found.alpha))
    for path, chosen in ((least, order[:SAMPLES]), (most, order[::-1][:SAMPLES])):
        notes = [f"{value:.2f}: " for value in found.alpha[chosen]]
        draw_samples(path, source, pairs["record"][chosen], None, notes)


def _load(model: Path | None) -> Any:
    """Return the encoder of a model, None without one."""
    if model is None:
        return None
    from otter_jax.embedding.encoder import load

    return load(model)


def _quickstart_encoder() -> Any:
    """Return the towers of configs/quickstart.py, good for any pictures and English captions."""
    from otter_jax import sharding
    from otter_jax.config import default_config
    from otter_jax.embedding.encoder import build_module, make_encoder
    from otter_jax.models import dual_encoder
    from otter_jax.models.hub import QUICKSTART_PACKAGES

    config = default_config()
    config.data.fit = "pad"
    config.model.image.pretrained, config.model.text.pretrained = (
        f"package:{name}" for name in QUICKSTART_PACKAGES
    )
    model, variables = dual_encoder.split(build_module(config))
    mesh = sharding.make_mesh()
    return make_encoder(config, model, sharding.put_state(mesh, variables), mesh)


def _refuse_too_few(numbers: Sequence[int], rounds: int) -> None:
    """Refuse to estimate trust of a few pairs (ValueError)."""
    # With JAX, which a look at the data alone does without.
    from otter_jax.embedding import trust, trust_rounds

    trust_rounds.refuse_too_few_in_folds(len(numbers), trust.NEIGHBORS, rounds, trust_rounds.FOLDS)


def _estimate_trust(
    encoder: Any, source: Source, numbers: Sequence[int], options: argparse.Namespace
) -> tuple[dict[str, Any], Any]:
    """Return `trust.Trust` of some pairs, behind the columns that say which."""
    from otter_jax.embedding import trust_rounds
    from otter_jax.embedding.pair_features import embed_pairs

    _refuse_too_few(numbers, options.rounds)  # Of those that can be read.
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        store = _features_of(options.model, encoder)
        pairs = embed_pairs(source, encoder, Path(folder), numbers, store)
        found = trust_rounds.estimate_in_rounds(
            pairs.image, pairs.text, rounds=options.rounds, seed=options.seed
        )
    return {"record": pairs.numbers, "key": pairs.keys}, found


def _features_of(model: Path | None, encoder: Any) -> Any:
    """Return the features that a run has in its workdir; None where the model is no run's."""
    from otter_jax import config
    from otter_jax.embedding.features import FeatureStore

    if model is None or not (model / "features").is_dir():
        return None
    return FeatureStore.of(model, encoder, config.load_config(model / "config.json"))


def _match_probability(
    encoder: Any, source: Source, order: np.ndarray, batch_size: int
) -> dict[str, float]:
    """Return `statistics.match_probability` of pairs in this order, under the model's own scale."""
    from otter_jax.embedding.features import in_parts
    from otter_jax.terminal import progress

    captions: list[str] = []

    def views() -> Iterator[np.ndarray]:
        """Yield images as the model sees them; their captions are noted."""
        for _, record in read_in_order(source, map(int, order)):
            captions.append(record.caption)
            yield encoder.transform(images.decode(record.image))

    embedded = map(encoder.image_features, in_parts(views(), encoder))
    features = np.concatenate(
        [encoder.image_features([]), *progress(embedded, len(order), "embed", count=len)]
    )
    image_embeddings = encoder.project_image(features)
    text_embeddings = encoder.encode_text(captions)
    scale = float(np.clip(np.exp(np.asarray(encoder.variables.params["log_scale"])), 1.0, 100.0))
    found = statistics.match_probability(image_embeddings, text_embeddings, scale, batch_size)
    return {**found, "scale": scale}


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if not value.is_integer() else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
