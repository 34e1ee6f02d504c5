"""A browser opens the report and drives the demo: nothing is blank, fails, or goes elsewhere."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw_shape, write_shard
from pictures.test_pages import EVIL, write_finished_run
from PIL import Image

from otter_jax import config as config_lib
from otter_jax import sharding
from otter_jax.commands import demo
from otter_jax.embedding import encoder, pair_index
from otter_jax.models import dual_encoder
from otter_jax.pictures import pages

pytestmark = pytest.mark.browser
NAMES = ("chromium", "chromium-browser", "google-chrome")
HARMLESS = "Method not implemented."  # Gradio's own page says so, to no harm.


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any) -> Callable[..., Any]:
    """Opens an address; at the end nothing was asked of other machines, and nothing has failed."""
    faults: list[str] = []
    made: list[Any] = []

    def hear(message: Any) -> None:
        if message.type in ("warning", "error") and HARMLESS not in message.text:
            faults.append(message.text)

    def open_page(address: str, width: int = 1280, scheme: str = "light") -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        made.append(page)
        page.on("console", hear)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(dialog.message) or dialog.dismiss())
        allowed = ("file:", "data:", "blob:", "http://127.0.0.1", "ws://127.0.0.1")
        page.on("request", lambda r: r.url.startswith(allowed) or faults.append(r.url))
        page.goto(address)
        return page

    yield open_page
    for page in made:
        page.close()
    assert faults == []


def is_blank(picture: bytes, tmp_path: Path) -> bool:
    path = tmp_path / "screen.png"
    path.write_bytes(picture)
    return np.asarray(Image.open(path).convert("L")).std() < 5


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_report_fits_and_runs_nothing(
    opened: Callable[..., Any], tmp_path: Path, width: int, scheme: str
) -> None:
    run = write_finished_run(tmp_path / "run")
    pages.write_report(run)
    page = opened(f"file://{run / 'report.html'}", width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert EVIL in page.inner_text("body")
    ink = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ink == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
    assert not is_blank(page.screenshot(), tmp_path)


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path, shape_pairs: list
) -> Iterator[Any]:
    """The demo of a model that has learned nothing, on 48 drawings with hostile captions."""
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("demo")
    pairs = [(drawing, f"{caption} {EVIL}") for drawing, caption in shape_pairs]
    write_shard(folder / "0.tar", pairs)
    config = config_lib.default_config()
    with config.unlocked():
        config.model.image.overrides.update(num_stages=2, stem_width=8, width=16)
        config.model.text.overrides.update(
            vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=16,
        )  # fmt: skip
    config.update_from_flattened_dict(
        {"data.train": f"webdataset:{folder}", "data.image_size": 32, "data.max_tokens": 8,
         "model.embed_dim": 8, "model.text.tokenizer": str(tokenizer_folder)}
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config_lib.as_dict(config)))
    model = encoder.make_encoder(
        config, *dual_encoder.split(encoder.build_module(config)), sharding.make_mesh()
    )
    index = pair_index.index_pairs(folder, model, limit=100)
    dropped = pair_index.DropList(folder / "keep.txt", index.keys)
    page = demo.build_page({"first": model, "second": model}, index, dropped)
    _, address, _ = demo.serve(page, "127.0.0.1", None, prevent_thread_lock=True, quiet=True)
    yield address.rstrip("/"), folder
    page.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_demo_classifies_and_searches(
    opened: Callable[..., Any], served: Any, tmp_path: Path, width: int
) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(draw_shape("red", "ring"))
    page = opened(served[0], width)
    page.set_input_files("input[type=file] >> nth=0", picture)
    page.get_by_label("Classes").fill(f"a certain ring, {EVIL}")
    page.get_by_role("button", name="Classify").click()
    page.get_by_text("a certain ring").first.wait_for(timeout=60_000)
    page.get_by_text(EVIL).first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not is_blank(page.screenshot(), tmp_path)
    page.get_by_role("tab", name="Search").click()
    page.get_by_label("Text").fill("a red circle")
    page.get_by_role("button", name="Search").click()
    page.locator(".grid-wrap img").first.wait_for(timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_what_is_wrong_is_said(opened: Callable[..., Any], served: Any) -> None:
    page = opened(served[0])
    page.get_by_role("button", name="Classify").click()
    page.get_by_text("drop or paste a picture first").first.wait_for(timeout=60_000)


def test_a_file_that_is_no_picture_is_refused_in_words(
    opened: Callable[..., Any], served: Any, tmp_path: Path
) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    page = opened(served[0])
    page.set_input_files("input[type=file] >> nth=0", tmp_path / "notes.png")
    page.wait_for_timeout(1000)
    page.get_by_role("button", name="Classify").click()
    page.get_by_text("no picture that can be read").first.wait_for(timeout=60_000)


def test_a_pair_is_dropped(opened: Callable[..., Any], served: Any) -> None:
    address, folder = served
    page = opened(address)
    page.get_by_role("tab", name="Doubtful pairs").click()
    page.get_by_role("button", name="Drop this pair").click()
    said = "[...document.querySelectorAll('textarea')].map(each => each.value).join(' ')"
    page.wait_for_function(f"{said}.includes('1 dropped')")
    assert len((folder / "keep.txt").read_text().split()) == 47
    assert EVIL in page.evaluate(said)


def test_no_file_of_the_server_can_be_read(served: Any) -> None:
    httpx = pytest.importorskip("httpx")
    address, folder = served
    for path in ("/etc/passwd", folder / "config.json", Path(__file__)):
        assert httpx.get(f"{address}/gradio_api/file={path}").status_code in (403, 404)
    picture = folder / "picture.png"
    picture.write_bytes(draw_shape("red", "ring"))
    sent = {"files": ("picture.png", picture.read_bytes())}
    (uploaded,) = httpx.post(f"{address}/gradio_api/upload", files=sent).json()
    search = f"{address}/gradio_api/call/search"
    for path, outcome in ((uploaded, "complete"), (str(picture), "error")):
        handed = {"path": path, "meta": {"_type": "gradio.FileData"}}
        asked = httpx.post(search, json={"data": ["", handed]}).json()
        assert f"event: {outcome}" in httpx.get(f"{search}/{asked['event_id']}", timeout=60).text
    large = {"files": ("large.png", b"0" * 21_000_000)}
    assert httpx.post(f"{address}/gradio_api/upload", files=large).status_code == 413


def test_several_visitors_are_answered(served: Any) -> None:
    from gradio_client import Client

    address, _ = served
    found: list[Any] = []

    def visit() -> None:
        # Gradio 6.31 writes a picture's file anew for each visitor, and cuts a download short that
        # another one makes at that moment. Answers are what is asked for here.
        client = Client(address, verbose=False, download_files=False)
        found.append(client.predict("a red circle", None, api_name="/search"))

    visitors = [threading.Thread(target=visit) for _ in range(4)]
    for each in visitors:
        each.start()
    for each in visitors:
        each.join(60)
    assert len(found) == 4
