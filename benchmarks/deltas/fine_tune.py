"""A small fine-tune of the reference checkpoint on its own training questions: what a second release is made of.

python -m deltas.fine_tune CHECKPOINT OUT STEPS LEARNING_RATE
"""

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from stages.artifacts import Checkpoint
from stages.data.batches import training_batches
from stages.models.training import Trainee, learning_rate, optimizer_of

BATCH, WARMUP, SEED, WEIGHT_DECAY = 24, 5, 4242, 0.05


def fine_tune(checkpoint: Checkpoint, out: Path, steps: int, rate: float) -> float:
    """Write the checkpoint after so many AdamW steps; return the last loss. All weights learn; names, shapes and dtypes
    stay. rate: the peak of the learning rate, behind WARMUP steps and before a cosine."""
    torch.manual_seed(SEED)
    trainee = Trainee(checkpoint.model())
    for parameter in trainee.parameters():
        parameter.requires_grad_(True)
    optimizer = optimizer_of(trainee, WEIGHT_DECAY)
    grid = trainee.model.config.vision.grid
    batches = training_batches(
        checkpoint.tokenizer(), seed=SEED, batch=BATCH, grid=grid, start=0, stop=steps, workers=0
    )
    loss = torch.zeros(())
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, peak=rate, warmup=WARMUP, steps=steps)
        _, loss, _ = trainee(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainee.model.parameters(), 1.0)
        optimizer.step()
    shutil.copytree(checkpoint.path, out, dirs_exist_ok=True)
    before = load_file(checkpoint.weights)
    after = trainee.model.state_dict()
    save_file(
        {name: after[name].detach().to(value.dtype).contiguous() for name, value in before.items()},
        out / "model.safetensors",
    )
    return float(loss)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(fine_tune(Checkpoint(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
