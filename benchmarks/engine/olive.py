"""The peer Olive: its own environment, a model made from nothing, and a workflow of about what ours does."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from engine.timing import Cost, spend

PACKAGES = ("olive-ai==0.13.0", "requests", "psutil", "pydantic<2.12", "onnxruntime", "onnxscript")
SAME = ("torch", "transformers")  # in the version that is installed here, so that both peers import the same
ENVIRONMENT = {"OLIVE_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}

MODEL = '''
"""A decoder with random weights and a tokenizer of made-up words, for Olive to convert."""
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

torch.manual_seed(0)
SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
words = [*SPECIAL.values(), *(f"word{number}" for number in range(1020))]
shape = Qwen2Config(vocab_size=len(words), hidden_size=128, intermediate_size=256, num_hidden_layers=4,
                    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
                    pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)
Qwen2ForCausalLM(shape).eval().save_pretrained("model")
tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
tokenizer.pre_tokenizer = Whitespace()
PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained("model")
'''

DATA = {
    "name": "tokens",
    "type": "TransformersTokenDummyDataContainer",
    "load_dataset_config": {"seq_len": 16, "max_samples": 4},
}
LATENCY = {
    "name": "latency",
    "type": "latency",
    "data_config": "tokens",
    "sub_types": [{"name": "avg", "priority": 1, "goal": {"type": "threshold", "value": 1000}}],
    "user_config": {},
}
WORKFLOW = {  # convert to ONNX, 4 bits in blocks of 32, measure
    "workflow_id": "peer",
    "input_model": {"type": "HfModel", "model_path": "model", "task": "text-generation"},
    "systems": {
        "here": {
            "type": "LocalSystem",
            "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
        }
    },
    "data_configs": [DATA],
    "evaluators": {"speed": {"metrics": [LATENCY]}},
    "passes": {
        "convert": {
            "type": "OnnxConversion",
            "target_opset": 20,
            "torch_dtype": "float32",
            "use_dynamo_exporter": True,
        },
        "quantize": {"type": "OnnxBlockWiseRtnQuantization", "block_size": 32},
    },
    "host": "here",
    "target": "here",
    "evaluator": "speed",
    "evaluate_input_model": False,
    "cache_dir": "cache",
    "output_dir": "out",
}


class Olive:
    """Olive in its own environment under `peers` (kept between runs), with a workflow in `folder`."""

    def __init__(self, peers: Path, folder: Path) -> None:
        self.python = install(peers / "olive")
        self.folder = folder
        folder.mkdir(parents=True)
        (folder / "workflow.json").write_text(json.dumps(WORKFLOW, indent=2), encoding="utf-8")
        spend([str(self.python), "-c", MODEL], folder, ENVIRONMENT)

    def run(self) -> Cost:
        """Run the workflow: the first time it does all of it, then Olive finds its own results."""
        words = [str(self.python.with_name("olive")), "run", "--config", "workflow.json"]
        cost = spend(words, self.folder, ENVIRONMENT)
        if not any((self.folder / "out").rglob("*.onnx")):  # Olive ends with 0 when a pass has failed
            raise SystemExit(f"Olive made no model:\n{cost.out}")
        return cost


def install(home: Path) -> Path:
    """Return the Python of an environment with Olive in it, made where it is not there yet."""
    python, ready = home / "bin" / "python", home / ".ready"
    wanted = [*PACKAGES, *(f"{name}=={metadata.version(name).partition('+')[0]}" for name in SAME)]
    if not ready.is_file() or ready.read_text(encoding="utf-8") != "\n".join(wanted):
        print(f"installing Olive in {home}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True)
        ready.write_text("\n".join(wanted), encoding="utf-8")
    return python
