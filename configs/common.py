"""What the presets of the papers share, so that two of them differ in the method alone.

OTTER's recipe (Wu et al., ICLR 2022, as its released scripts run it): ResNet50 trained on ImageNet
and the sentence encoder DeCLUTR-sci-base, both fine-tuned; the image tower's features are projected
to the sentence encoder's 768 numbers; SGD with momentum 0.9, learning rate 3e-3 and cosine decay;
512 pairs a batch, 10 epochs; images resized to 256 and cropped at random to 224, texts cut at 60
tokens. The cosine is stepped with every update here, with every epoch in the released code.
"""

from ml_collections import ConfigDict

from otter_jax.config import default_config

# The released code normalises with CLIP's statistics, for ImageNet's weights too.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def get_config() -> ConfigDict:
    """Return a config with everything but the method."""
    config = default_config()
    config.batch_size = 512
    config.total_epochs = 10.0

    config.data.train = "webdataset:data/cc3m"  # Conceptual Captions 3M in the papers.
    config.data.image_size = 224
    config.data.augmentation = "resize_random_crop"
    config.data.max_tokens = 60

    config.model.embed_dim = 768
    config.model.image.name = "resnet50"
    config.model.image.pretrained = "timm/resnet50.tv_in1k"
    config.model.image.projection = "linear"
    with config.unlocked():
        config.model.image.overrides.update(mean=CLIP_MEAN, std=CLIP_STD)
    config.model.text.name = "bert"
    config.model.text.pretrained = "johngiorgi/declutr-sci-base"
    config.model.text.projection = "auto"  # None: the widths agree.

    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 0.0

    config.checkpoint.every_steps = 1000
    config.evaluate.sets = ()  # See the configs' docstrings.
    return config
