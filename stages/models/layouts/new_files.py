"""What lies beside the weights of a new checkpoint: configuration, tokenizer, processor, as real releases have them."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from stages.models.layouts.tokens import QWEN2_SPLIT
from stages.models.vlm import ModelConfig

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
IMAGE = "<image>"
_SYSTEM = "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
_OPENING = "{% if messages[0]['role'] != 'system' %}" + _SYSTEM + "{% endif %}"
_ANSWER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
# As Qwen2's templates: turns between <|im_start|> and <|im_end|>, and a system turn if there is none.
TEXT_TEMPLATE = (
    _OPENING
    + "{% for turn in messages %}"
    + "{{ '<|im_start|>' ~ turn['role'] ~ '\\n' ~ turn['content'] ~ '<|im_end|>\\n' }}"
    + "{% endfor %}"
    + _ANSWER
)
# The same for messages made of parts: the images first, then each text on a line of its own.
PARTS_TEMPLATE = (
    _OPENING
    + "{% for turn in messages %}{{ '<|im_start|>' ~ turn['role'] ~ '\\n' }}"
    + "{% for part in turn['content'] if part['type'] == 'image' %}{{ '"
    + IMAGE
    + "' }}{% endfor %}"
    + "{% for part in turn['content'] if part['type'] == 'text' %}{{ '\\n' ~ part['text'] }}{% endfor %}"
    + "{{ '<|im_end|>\\n' }}{% endfor %}"
    + _ANSWER
)
_COMMON = " etaoinshrdlcumwfgypbvkjxqz.,?!0123456789"


def write_description(out: Path, config: ModelConfig, layout: str, dtype: str) -> None:
    """config.json, generation_config.json, the tokenizer's files and, in transformers' layout, the processor's."""
    assert config.text is not None
    base = config.image_token_id - len(SPECIAL) if config.image_token_id is not None else None
    if base is None:
        base = min(151643, config.text.vocab_size - len(SPECIAL))
    tokenizer = new_tokenizer(base, with_image=layout == "transformers")
    (out / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    write = {"apple": _apple, "transformers": _transformers, "qwen2": _qwen2}[layout]
    _write(out / "config.json", write(config, dtype, ids))
    generation = {"bos_token_id": ids["<|endoftext|>"], "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]]}
    _write(out / "generation_config.json", {**generation, "pad_token_id": ids["<|endoftext|>"]})
    special = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
    settings: dict[str, Any] = {
        **special,
        "add_prefix_space": False,
        "model_max_length": 8192,
        "tokenizer_class": "Qwen2Tokenizer",
    }
    if layout != "transformers":
        _write(out / "tokenizer_config.json", {**settings, "chat_template": TEXT_TEMPLATE})
        return
    _write(out / "tokenizer_config.json", {**settings, "image_token": IMAGE})
    (out / "chat_template.jinja").write_text(PARTS_TEMPLATE, encoding="utf-8")
    assert config.vision is not None
    size = config.vision.image_size
    _write(
        out / "preprocessor_config.json",
        {
            "crop_size": {"height": size, "width": size},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.0, 0.0, 0.0],
            "image_processor_type": "CLIPImageProcessor",
            "image_std": [1.0, 1.0, 1.0],
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"shortest_edge": size},
        },
    )


def new_tokenizer(base: int, with_image: bool = False) -> Tokenizer:
    """Byte-level BPE with Qwen2's splitting: `base` tokens of bytes and pairs of tokens, the frequent letters' first,
    then <|endoftext|>, <|im_start|>, <|im_end|>, and <image> if asked for."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    frequent = ["Ġ" if each == " " else each for each in _COMMON]
    ordered = frequent + [each for each in alphabet if each not in frequent]
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    pairs: list[str] = []
    for extent in range(len(ordered)):  # squares of growing size, so that few merges are of the most frequent letters
        for left, right in [(extent, each) for each in range(extent)] + [(each, extent) for each in range(extent + 1)]:
            pairs.append(ordered[left] + ordered[right])
            merges.append((ordered[left], ordered[right]))
    for pair in pairs[: max(0, base - len(alphabet) - len(pairs)) // len(ordered) + 1]:
        merges += [(pair, each) for each in ordered]
    merges = merges[: base - len(alphabet)]
    for left_part, right_part in merges:
        vocabulary[left_part + right_part] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    added = (*SPECIAL, IMAGE) if with_image else SPECIAL
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    return tokenizer


def _qwen2(config: ModelConfig, dtype: str, ids: dict[str, int]) -> dict[str, Any]:
    text = config.text
    assert text is not None
    narrow = {} if text.query_width == text.hidden_size else {"head_dim": text.head_dim}
    return {
        **narrow,
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": 32768,
        "max_window_layers": text.num_hidden_layers,
        "model_type": "qwen2",
        "num_attention_heads": text.num_attention_heads,
        "num_hidden_layers": text.num_hidden_layers,
        "num_key_value_heads": text.num_key_value_heads,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        "sliding_window": 32768,
        "tie_word_embeddings": text.tie_word_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": text.vocab_size,
    }


def _apple(config: ModelConfig, dtype: str, ids: dict[str, int]) -> dict[str, Any]:
    vision = config.vision
    assert vision is not None
    return {
        **_qwen2(config, dtype, ids),
        "architectures": ["LlavaQwen2ForCausalLM"],
        "freeze_mm_mlp_adapter": False,
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": None,
        "mm_hidden_size": vision.output_width,
        "mm_patch_merge_type": "flat",
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": f"mobileclip_l_{vision.image_size}",
        "model_type": "llava_qwen2",
        "tokenizer_model_max_length": 8192,
        "tokenizer_padding_side": "right",
        "tune_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": True,
        "use_mm_proj": True,
    }


def _transformers(config: ModelConfig, dtype: str, ids: dict[str, int]) -> dict[str, Any]:
    vision, text = config.vision, config.text
    assert vision is not None and text is not None
    decoder = {key: value for key, value in _qwen2(config, dtype, ids).items() if key != "architectures"}
    return {
        "architectures": ["FastVlmForConditionalGeneration"],
        "image_seq_length": vision.tokens,
        "image_token_index": config.image_token_id,
        "model_type": "fast_vlm",
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "text_config": decoder,
        "tie_word_embeddings": text.tie_word_embeddings,
        "torch_dtype": dtype,
        "vision_config": {
            "architecture": "fastvit_mci3",
            "do_pooling": True,
            "global_pool": "avg",
            "hidden_size": vision.output_width,
            "initializer_range": 0.02,
            "model_args": {"inference_mode": True},
            "model_type": "timm_wrapper",
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }


def _write(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
