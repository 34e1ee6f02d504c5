"""Fine-tuning a pretrained CLIP on pairs of one's own, with a look at what it forgets.

Paper:    Radford et al., Learning Transferable Visual Models From Natural Language Supervision
          (2021), https://arxiv.org/abs/2103.00020; layer-wise rates as in Dong et al., CLIP Itself
          is a Strong Fine-tuner (2022), https://arxiv.org/abs/2212.06138
Command:  python main.py --config=configs/finetune_clip.py --workdir=runs/mine
          --config.data.train=folder:/data/mine
          --config.model.pretrained=openai/clip-vit-base-patch32
          and more in docs/finetuning.md: LoRA, locked towers, interpolation with the start
Hardware: one accelerator; on a CPU with --config.model.image.lora.rank=8 and small images.
Time:     1,000 pairs are 80 steps.
Expected: what is measured before and after training on a tenth of the pairs, held out, and on
          open_clipart, where a loss is what was forgotten.

Made for 1,000 to 100,000 pairs. A folder may have a caption beside each image or be a folder a
class.
"""

from ml_collections import ConfigDict

from otter_jax.config import default_config


def get_config() -> ConfigDict:
    """Return the preset."""
    config = default_config()
    config.batch_size = 128
    config.total_epochs = 10.0
    config.log_every_steps = 10

    config.data.train = "folder:data/mine"
    config.data.held_out = 0.1
    config.data.augmentation = "light"
    config.data.image_size = config.data.max_tokens = None  # The checkpoint's.

    config.model.pretrained = "openai/clip-vit-base-patch32"
    config.model.embed_dim = None
    for tower in (config.model.image, config.model.text):
        tower.name = "auto"
        tower.projection = "pretrained"
        tower.keep_batch_stats = True  # Of CLIPs with a ResNet.

    config.objective.name = "infonce"
    config.objective.known_positives = (
        "ignore"  # Equal captions, as of one class, are no negatives.
    )

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-5
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.1
    config.optimizer.warmup_steps = 20
    config.optimizer.gradient_clip = 1.0
    # Lower layers, which hold what is common to all images and texts, learn more slowly.
    config.optimizer.groups = ({"pattern": "^(image|text)", "layer_decay": 0.75},)

    config.checkpoint.every_steps = 200
    config.evaluate.sets = ("open_clipart",)
    return config
