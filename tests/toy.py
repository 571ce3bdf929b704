"""A toy vision-language model with random weights, small enough that every test can build, convert and run it."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from stages.artifacts import Checkpoint
from stages.models.fastvit import VisionConfig
from stages.models.qwen2 import TextConfig
from stages.models.vlm import ModelConfig, VisionLanguageModel

PREPROCESSING = {
    "image_size": 32,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "aspect": "stretch",
    "prompt_template": "{image}{question}<|im_start|>",
    "image_token": "<image>",
    "end_token": "<|im_end|>",
    "max_new_tokens": 12,
}


def toy_config(layers: int = 2, tied: bool = False) -> ModelConfig:
    vision = VisionConfig(
        image_size=32,
        stem_width=16,
        depths=(1, 1),
        widths=(32, 64),
        mixers=("repmixer", "attention"),
        strides=((1, 1), (2, 1)),
        mlp_ratio=2,
        ffn_kernel=3,
        patch_kernel=3,
        head_dim=32,
        expansion=1,
    )
    text = TextConfig(
        vocab_size=288,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_theta=10000.0,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
    )
    return ModelConfig(vision, text, image_token_id=258)


def narrow_config(**text: int) -> ModelConfig:
    """As a search leaves one: one head fewer of the same width, an output head of low rank, few tokens, thin
    feed-forwards. text: other values of TextConfig."""
    toy = toy_config()
    assert toy.vision is not None and toy.text is not None
    vision = replace(toy.vision, strides=((1, 1), (2, 2)), mlp_ratio=1.5)
    pruned = {"num_attention_heads": 1, "head_rank": 48, **text}
    return replace(toy, vision=vision, text=replace(toy.text, **pruned))


def toy_tokenizer() -> Tokenizer:
    """Byte-level, without merges: 256 bytes, then <|im_start|>, <|im_end|>, <image>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>", "<image>")]
    )
    return tokenizer


def toy_checkpoint(
    path: Path, *, layers: int = 2, tied: bool = False, seed: int = 0, config: ModelConfig | None = None
) -> Checkpoint:
    """A whole, valid checkpoint of random weights at path, in float16; of another shape, by config."""
    path.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = config or toy_config(layers, tied)
    model = VisionLanguageModel(config, trainable=True).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    state = {name: tensor.detach().half().contiguous() for name, tensor in model.deployed().state_dict().items()}
    save_file(state, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config.to_dict()))
    (path / "preprocessing.json").write_text(json.dumps(PREPROCESSING))
    toy_tokenizer().save(str(path / "tokenizer.json"))
    return Checkpoint(path)
