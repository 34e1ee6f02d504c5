"""Opens a page to try a run's model on: otter-jax demo RUN [OTHER_RUN].

Drop or paste a picture and name classes; search the training pairs by text or picture; look at the
pairs that are trusted least, and drop them: RUN/keep.txt then has the keys of those to keep. With a
second run, both answer beside each other. The page is seen from this machine alone, unless --host
says otherwise. Needs the extra [demo] and Gradio, see docs/looking.md.
"""

import argparse
import functools
import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from otter_jax.commands.command_line import Parser, path_of
from otter_jax.data import images
from otter_jax.data.kept_pairs import KEEP_FILE
from otter_jax.embedding.encoder import Encoder, load
from otter_jax.embedding.pair_index import DropList, PairIndex, index_pairs

SHOWN = 12  # Pairs that a search finds.
DOUBTFUL = 200  # Pairs that are trusted least, to browse through.
THUMBNAIL = 256  # Pixels.
MOST_PIXELS = 50_000_000  # Of a visitor's picture.
MOST_BYTES = "20mb"  # Of an upload.
MOST_CLASSES = 1000


def main(arguments: Sequence[str]) -> None:
    """Open the page for the runs that the command line names, until it is stopped."""
    options = parse(arguments)
    import_gradio()  # Before what takes long.
    models = {path.resolve().name: load(path) for path in options.runs}
    if len(models) < len(options.runs):
        raise ValueError("the runs have the same name")
    workdir = options.runs[0]
    pairs = index_pairs(workdir, next(iter(models.values())), options.pairs)
    for model in models.values():  # Compiled now, so that no visitor waits for it.
        model.classify(np.zeros((32, 32, 3), np.uint8), ["a cat", "a dog"])
    page = build_page(models, pairs, DropList(workdir / KEEP_FILE, pairs.keys))
    serve(page, options.host, options.port)


def serve(page: Any, host: str, port: int, **settings: Any) -> Any:
    """Serve a page until it is stopped; return what gradio.Blocks.launch does.

    Args:
        page: what `build_page` made.
        host: the address; 127.0.0.1 is seen from this machine alone.
        port: of it.
        **settings: others of gradio.Blocks.launch.
    """
    themes = import_gradio().themes
    return page.queue(default_concurrency_limit=4, max_size=64).launch(
        server_name=host,
        server_port=port,
        max_file_size=MOST_BYTES,
        share=False,
        theme=themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        **settings,
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(prog="otter-jax demo", description=__doc__)
    parser.add_argument("runs", nargs="+", type=path_of, metavar="RUN", help="workdir; one or two")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve; default: this machine"
    )
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--pairs", type=int, default=10_000, help="most training pairs to embed")
    options = parser.parse_args(arguments)
    if len(options.runs) > 2:
        parser.error(f"one run or two, found {len(options.runs)}")
    if not 0 < options.port < 2**16:
        parser.error(f"--port={options.port}: it must be 1 to {2**16 - 1}")
    if options.pairs < 1:
        parser.error(f"--pairs={options.pairs}: it must be at least 1")
    return options


def build_page(models: dict[str, Encoder], pairs: PairIndex, dropped: DropList) -> Any:
    """Return the page, a gradio.Blocks.

    Args:
        models: one or two, by the names of their runs.
        pairs: those that the first was trained on.
        dropped: where dropped pairs are kept.

    Raises:
        ModuleNotFoundError: without Gradio.
    """
    gradio = import_gradio()
    with gradio.Blocks(
        title="otter_jax", analytics_enabled=False, delete_cache=(3600, 3600)
    ) as page:
        gradio.Markdown(f"# {' and '.join(map(html.escape, models))}")
        with gradio.Tab("Classify"):
            _classify_tab(gradio, models)
        with gradio.Tab("Search"):
            _search_tab(gradio, pairs)
        with gradio.Tab("Doubtful pairs"):
            _doubtful_tab(gradio, pairs, dropped)
    return page


def import_gradio() -> Any:
    """Return the library; where it is missing, say how it is installed (ModuleNotFoundError)."""
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "otter-jax demo needs Gradio: pip install 'otter_jax[demo]' and then "
            "pip install --no-deps gradio==6.31.0 (it asks for an older Pillow, and runs with this)"
        ) from error
    return gradio


def classify(model: Encoder, path: str | None, labels: str, template: str) -> dict[str, float]:
    """Return each class's probability.

    Args:
        model: the model.
        path: of the picture's file.
        labels: the classes, separated by commas or lines.
        template: the prompt around a name, with {}.

    Raises:
        ValueError: without a picture or classes, or for a picture that is none or too large.
    """
    names = list(dict.fromkeys(filter(None, map(str.strip, labels.replace("\n", ",").split(",")))))
    if not names:
        raise ValueError("name at least one class, such as: a cat, a dog")
    if len(names) > MOST_CLASSES:
        raise ValueError(f"{len(names):,} classes are too many: at most {MOST_CLASSES:,}")
    (probabilities,) = model.classify(read_picture(path), names, template.strip() or "{}")
    return dict(zip(names, probabilities.tolist(), strict=True))


def read_picture(path: str | None) -> np.ndarray:
    """Return a visitor's picture, uint8 [H, W, 3]; ValueError for none, or a too large one."""
    if path is None:
        raise ValueError("drop or paste a picture first")
    try:
        with Image.open(path) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        width, height = MOST_PIXELS, 2
    except OSError:
        raise ValueError("this file is no picture that can be read") from None
    if width * height > MOST_PIXELS:
        raise ValueError(f"the picture is too large: at most {MOST_PIXELS // 10**6} megapixels")
    return images.decode(Path(path).read_bytes())


def shown(pairs: PairIndex, found: Sequence[tuple[int, float]]) -> list[tuple[np.ndarray, str]]:
    """Return pictures and captions of pairs that were found, with their cosines."""
    return [
        (thumbnail(pairs.picture(place)), f"{cosine:.2f}  {pairs.caption(place)}")
        for place, cosine in found
    ]


def thumbnail(data: bytes) -> np.ndarray:
    """Return a picture on a small white square."""
    return images.evaluation_transform(images.decode(data), THUMBNAIL, fit="pad")


def _saying_why(gradio: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that tells a visitor what is wrong with the input, as text."""

    @functools.wraps(function)
    def guarded(*values: Any) -> Any:
        """Return what the function does; a refusal is shown on the page."""
        try:
            return function(*values)
        except (ValueError, OSError) as error:
            raise gradio.Error(html.escape(str(error)), print_exception=False) from None

    return guarded


def _picture(gradio: Any, label: str) -> Any:
    """Return a place to drop or paste a picture, whose file is handed on as it came."""
    place = gradio.Image(label=label, type="filepath", sources=["upload", "clipboard"], height=240)

    def path_of_upload(payload: Any) -> str | None:
        """Return where an upload lies; None where there is none."""
        return None if payload is None else payload.path

    # Else Gradio opens it, and says of what is none only "Error".
    place.preprocess = path_of_upload
    return place


def _classify_tab(gradio: Any, models: dict[str, Encoder]) -> None:
    with gradio.Row():
        with gradio.Column():
            picture = _picture(gradio, "Picture")
            labels = gradio.Textbox("a cat, a dog, a house, a flower", label="Classes")
            template = gradio.Textbox("a photo of {}.", label="Template")
            button = gradio.Button("Classify", variant="primary")
        with gradio.Column():
            answers = [gradio.Label(label=name, num_top_classes=10) for name in models]

    def answer(path: str | None, labels: str, template: str) -> Any:
        """Return what each model says of the picture."""
        found = [classify(model, path, labels, template) for model in models.values()]
        return found if len(found) > 1 else found[0]

    button.click(_saying_why(gradio, answer), [picture, labels, template], answers)


def _search_tab(gradio: Any, pairs: PairIndex) -> None:
    gradio.Markdown(f"Among {len(pairs.keys):,} training pairs, by what the images show.")
    text = gradio.Textbox(label="Text", placeholder="a drawing of a lighthouse")
    picture = _picture(gradio, "or a picture")
    button = gradio.Button("Search", variant="primary")
    gallery = gradio.Gallery(label="Found", columns=4, height="auto")

    def search(text: str, path: str | None) -> list[tuple[np.ndarray, str]]:
        """Return the pairs that fit the picture best, or the text where there is no picture."""
        if path is not None:
            return shown(pairs, pairs.search_image(read_picture(path), SHOWN))
        return shown(pairs, pairs.search_text(text, SHOWN))

    button.click(_saying_why(gradio, search), [text, picture], gallery)


def _doubtful_tab(gradio: Any, pairs: PairIndex, dropped: DropList) -> None:
    if pairs.alpha is None:
        gradio.Markdown(f"{len(pairs.keys):,} pairs are too few to say which are wrong.")
        return
    order = pairs.least_trusted(DOUBTFUL)
    gradio.Markdown(
        "The pairs that are trusted least, least first: images that look alike are described "
        f"otherwise. {KEEP_FILE} has the keys of all {len(pairs.keys):,} but the dropped ones."
    )
    rank = gradio.Slider(1, len(order), value=1, step=1, label="Rank")
    with gradio.Row():
        picture = gradio.Image(label="Image", interactive=False, height=240)
        caption = gradio.Textbox(label="Caption", interactive=False, lines=3)
    gallery = gradio.Gallery(label="Images like it, and what they are called", columns=4)
    with gradio.Row():
        show_button = gradio.Button("Show")
        drop_button = gradio.Button("Drop this pair", variant="stop")

    def show(rank: int) -> tuple[np.ndarray, str, list[tuple[np.ndarray, str]]]:
        """Return a pair's picture and caption, and the pairs whose images are like it."""
        place = order[int(rank) - 1]
        state = "dropped" if pairs.keys[place] in dropped else "kept"
        facts = f"trust {pairs.alpha[place]:.2f}, {state}, {len(dropped)} dropped"
        said = f"{pairs.caption(place)}\n{facts}"
        return thumbnail(pairs.picture(place)), said, shown(pairs, pairs.neighbors(place, 8))

    def drop(rank: int) -> tuple[Any, ...]:
        """Drop a pair; return the next one's rank and what `show` gives of it."""
        dropped.drop(pairs.keys[order[int(rank) - 1]])
        following = min(int(rank) + 1, len(order))
        return (following, *show(following))

    outputs = [picture, caption, gallery]
    show_button.click(_saying_why(gradio, show), rank, outputs)
    rank.release(_saying_why(gradio, show), rank, outputs)
    drop_button.click(_saying_why(gradio, drop), rank, [rank, *outputs])
