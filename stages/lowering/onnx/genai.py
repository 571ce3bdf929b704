"""genai_config.json and tokenizer_config.json: what onnxruntime-genai wants beside decoder.onnx to run it as it is.

The schema is that of onnxruntime-genai 0.18 (docs: onnxruntime.ai/docs/genai/reference/config). A decoder of a model
with a tower runs too, on text: its image_features may be left out.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from stages.models.qwen2 import TextConfig

_PADDING = "<|endoftext|>"  # Qwen2's token of beginning and padding


def genai_files(
    text: TextConfig, source: Path, *, filename: str, context: int, session_options: Mapping[str, str]
) -> dict[str, Any]:
    """The two files' contents, by name.

    source: a folder with the model's tokenizer.json and preprocessing.json, which say what ends an answer; where they
    are missing, generation stops at max_length alone, and there is no tokenizer_config.json.
    filename: the decoder's file. session_options: configuration entries of ONNX Runtime.
    """
    tokenizer, end_token = _tokenizer(source)
    end = tokenizer.token_to_id(end_token) if tokenizer else None
    padding = tokenizer.token_to_id(_PADDING) if tokenizer else None
    end = text.vocab_size - 1 if end is None else end
    files = {"genai_config.json": _config(text, filename, context, end, end if padding is None else padding)}
    files["genai_config.json"]["model"]["decoder"]["session_options"] |= session_options
    if tokenizer:
        files["tokenizer_config.json"] = {
            "add_bos_token": False,
            "add_prefix_space": False,
            "eos_token": end_token,
            "model_max_length": context,
            "pad_token": end_token if padding is None else _PADDING,
            "tokenizer_class": "Qwen2Tokenizer",
        }
    return files


def _tokenizer(source: Path) -> tuple[Tokenizer | None, str]:
    tokenizer, preprocessing = source / "tokenizer.json", source / "preprocessing.json"
    if not tokenizer.is_file() or not preprocessing.is_file():
        return None, ""
    settings = json.loads(preprocessing.read_text(encoding="utf-8"))
    return Tokenizer.from_file(str(tokenizer)), str(settings["end_token"])


def _config(text: TextConfig, filename: str, context: int, end: int, padding: int) -> dict[str, Any]:
    decoder = {
        "filename": filename,
        "head_size": text.head_dim,
        "hidden_size": text.hidden_size,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "num_attention_heads": text.num_attention_heads,
        "num_hidden_layers": text.num_hidden_layers,
        "num_key_value_heads": text.num_key_value_heads,
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "session_options": {"log_id": "onnxruntime-genai", "log_severity_level": 3, "provider_options": []},
    }
    return {
        "model": {
            "bos_token_id": padding,
            "context_length": context,
            "decoder": decoder,
            "eos_token_id": end,
            "pad_token_id": padding,
            "type": "qwen2",
            "vocab_size": text.vocab_size,
        },
        "search": {
            "do_sample": False,
            "max_length": context,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }
