"""A Qwen2 decoder of 0.5B with random weights, as transformers would save it: what both sides start from.

Run as a script: python -m convert.checkpoints FOLDER
"""

import json
import sys
from pathlib import Path

SHAPE = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
}
SPECIAL = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
CONFIG = SHAPE | {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "use_sliding_window": False,
    "sliding_window": None,
    "initializer_range": 0.02,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 256,
    "torch_dtype": "bfloat16",
}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write(folder: Path) -> None:
    """config.json, model.safetensors (bfloat16, 0.99 GB), tokenizer.json (bytes), tokenizer_config.json."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes().items():
        noise = torch.randn(shape, generator=random) * CONFIG["initializer_range"]
        tensors[name] = (noise + 1 if name.endswith("norm.weight") else noise).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token in ("<|endoftext|>", "<|im_end|>", "<|im_start|>")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, **SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2), encoding="utf-8")


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor by transformers' name; the head is the embedding."""
    width, inner = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    shared = width // SHAPE["num_attention_heads"] * SHAPE["num_key_value_heads"]
    found = {"model.embed_tokens.weight": (SHAPE["vocab_size"], width), "model.norm.weight": (width,)}
    for layer in range(SHAPE["num_hidden_layers"]):
        each: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (width,),
            "post_attention_layernorm.weight": (width,),
            "self_attn.o_proj.weight": (width, width),
            "mlp.gate_proj.weight": (inner, width),
            "mlp.up_proj.weight": (inner, width),
            "mlp.down_proj.weight": (width, inner),
        }
        for part, rows in (("q", width), ("k", shared), ("v", shared)):
            each[f"self_attn.{part}_proj.weight"] = (rows, width)
            each[f"self_attn.{part}_proj.bias"] = (rows,)
        found |= {f"model.layers.{layer}.{name}": shape for name, shape in each.items()}
    return found


if __name__ == "__main__":
    write(Path(sys.argv[1]))
