"""Train the reference model: a small FastVLM that reads, counts, names, locates and captions."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from pipelines.workspace import Workspace
from stages.artifacts import Checkpoint
from stages.data.batches import Batch, training_batches
from stages.data.questions import corpus
from stages.data.tokenizer import train_tokenizer
from stages.models.fastvit import VisionConfig
from stages.models.qwen2 import TextConfig
from stages.models.training import Trainee, learning_rate, optimizer_of
from stages.models.vlm import ModelConfig, VisionLanguageModel
from stages.schema import TrainConfig


def train(config: TrainConfig, work: Workspace) -> Checkpoint:
    """The checkpoint after config.steps steps. Killed at any moment, it goes on from its last saved state."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(config.threads)
    tokenizer = train_tokenizer(corpus())
    session = Session.start(config, tokenizer, device, work.scratch / "state.pt")
    batches = training_batches(
        tokenizer,
        seed=config.seed,
        batch=config.batch,
        grid=session.trainee.model.config.vision.grid,
        start=session.step,
        stop=config.steps,
    )
    for batch in batches:
        session.advance(batch)
        if session.step % config.log_every == 0:
            _report(session, config, work)
        if session.step % config.checkpoint_every == 0:
            session.save()
    return _write_checkpoint(session, tokenizer, work.out)


@dataclass
class Session:
    """A training run in progress: what must survive a kill, and one step of it."""

    config: TrainConfig
    trainee: Trainee
    optimizer: torch.optim.AdamW
    device: torch.device
    path: Path
    step: int = 0
    loss: float = 4.0
    accuracy: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def start(cls, config: TrainConfig, tokenizer: Tokenizer, device: torch.device, path: Path) -> "Session":
        """A new run, or the one whose state lies at path."""
        torch.manual_seed(config.seed)
        model = VisionLanguageModel(reference_config(tokenizer), trainable=True)
        trainee = Trainee(model).to(device, memory_format=torch.channels_last)
        _initialise(trainee)
        session = cls(config, trainee, optimizer_of(trainee, config.weight_decay), device, path)
        if path.exists():
            state = torch.load(path, map_location=device, weights_only=True)
            trainee.load_state_dict(state["trainee"])
            session.optimizer.load_state_dict(state["optimizer"])
            session.step, session.loss, session.accuracy = state["step"], state["loss"], state["accuracy"]
            session.history = state["history"]
        trainee.train()
        return session

    def advance(self, batch: Batch) -> None:
        config = self.config
        rate = learning_rate(self.step, peak=config.learning_rate, warmup=config.warmup, steps=config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = Batch(**{name: tensor.to(self.device, non_blocking=True) for name, tensor in vars(batch).items()})
        logits, loss, grid_loss = self.trainee(batch)
        total = loss + (0.5 * (1 - self.step / config.steps) + 0.05) * grid_loss
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.trainee.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        right = logits.detach().argmax(-1) == batch.ids[:, :, 1:][batch.answers[:, :, 1:]]
        self.loss += 0.02 * (loss.item() - self.loss)
        self.accuracy += 0.02 * (right.float().mean().item() - self.accuracy)

    def save(self) -> None:
        """Write the state aside and rename it, so that a kill leaves the old or the new one."""
        state: dict[str, Any] = {"trainee": self.trainee.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"step": self.step, "loss": self.loss, "accuracy": self.accuracy, "history": self.history}
        aside = self.path.with_suffix(".partial")
        torch.save(state, aside)
        os.replace(aside, self.path)


def reference_config(tokenizer: Tokenizer) -> ModelConfig:
    """The reference model's shape: 96-pixel images, 72 visual tokens of 16 x 8 pixels, four decoder layers."""
    vision = VisionConfig(
        image_size=96,
        stem_width=32,
        depths=(1, 2, 3),
        widths=(64, 128, 128),
        mixers=("repmixer", "repmixer", "attention"),
        strides=((1, 1), (2, 2), (2, 1)),
        mlp_ratio=3,
        ffn_kernel=3,
        patch_kernel=3,
        head_dim=32,
        expansion=2,
    )
    text = TextConfig(
        vocab_size=-(-tokenizer.get_vocab_size() // 32) * 32,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_theta=10000.0,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
    )
    return ModelConfig(vision, text, image_token_id=tokenizer.token_to_id("<image>"))


def _initialise(trainee: Trainee) -> None:
    """Embeddings small; the last layer of each residual branch scaled down by its depth (GPT-2's rule)."""
    model = trainee.model
    torch.nn.init.normal_(model.text.embed_tokens.weight, std=0.05)
    blocks = [block for stage in model.vision.stages for block in stage.blocks]
    with torch.no_grad():
        for block in blocks:
            block.ffn.contract.weight.mul_((2 * len(blocks)) ** -0.5)
        for layer in model.text.layers:
            layer.self_attn.o_proj.weight.mul_((2 * len(model.text.layers)) ** -0.5)
            layer.mlp.down_proj.weight.mul_((2 * len(model.text.layers)) ** -0.5)


def _report(session: Session, config: TrainConfig, work: Workspace) -> None:
    values = {"step": session.step, "loss": round(session.loss, 4), "token_accuracy": round(session.accuracy, 4)}
    session.history.append(values)
    work.metric("loss", session.loss, session.step)
    work.metric("token_accuracy", session.accuracy, session.step)
    text = f"loss {session.loss:.3f}, tokens right {100 * session.accuracy:.1f} %"
    work.progress(session.step, config.steps, text)
    work.log(f"step {session.step}: {text}")


def _write_checkpoint(session: Session, tokenizer: Tokenizer, out: Path) -> Checkpoint:
    model = session.trainee.model.cpu().deployed()
    state = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, out / "model.safetensors")
    tokenizer.save(str(out / "tokenizer.json"))
    checkpoint = Checkpoint(out)
    checkpoint.write_json("config.json", model.config.to_dict())
    checkpoint.write_json(
        "preprocessing.json",
        {
            "image_size": model.config.vision.image_size,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "aspect": "stretch",
            "resample": "bilinear",
            "prompt_template": "{image}{question}<|im_start|>",
            "image_token": "<image>",
            "end_token": "<|im_end|>",
            "max_new_tokens": 20,
        },
    )
    lines = [json.dumps(entry, sort_keys=True) for entry in session.history]
    (out / "training.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return checkpoint
