"""A distillation in progress: what must survive a kill, and one step of it."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.errors import StageError
from pipelines.workspace import Workspace
from stages.distillation.objective import Objective
from stages.distillation.source import Source
from stages.models.training import learning_rate
from stages.models.vlm import VisionLanguageModel
from stages.schema import DistillConfig


@dataclass
class Group:
    """Parameters that learn at `rate` times the configured learning rate, decayed or not."""

    parameters: list[nn.Parameter]
    rate: float
    decayed: bool


def distil(
    teacher: VisionLanguageModel,
    student: VisionLanguageModel,
    groups: Sequence[Group],
    source: Source,
    config: DistillConfig,
    work: Workspace,
    state: str = "distill.pt",
) -> None:
    """Train the student in place for config.steps steps.

    Every config.checkpoint_every steps the state is written to the file `state` of work.scratch; a run that was killed
    goes on from there and ends with the same bytes, on the same machine with the same threads. Raises StageError where
    the loss is no longer finite.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(config.threads)
        session = Session(teacher, student, groups, source, config, device, work.scratch / state)
        session.resume()
        _run(session, source, work)
    finally:
        torch.set_num_threads(before)
    student.cpu().eval()


def _run(session: "Session", source: Source, work: Workspace) -> None:
    config, first, started = session.config, session.step, time.monotonic()
    for batch in source.batches(session.step, config.steps):
        session.advance(batch)
        if session.step % config.checkpoint_every == 0 and session.step < config.steps:
            session.save()
        if session.step % config.log_every == 0 or session.step == config.steps:
            seconds = (time.monotonic() - started) / (session.step - first) * (config.steps - session.step)
            text = f"KL {session.divergence:.4f}, loss {session.loss:.4f}, {seconds / 60:.1f} min to go"
            work.metric("kl", session.divergence, session.step)
            work.metric("loss", session.loss, session.step)
            work.progress(session.step, config.steps, text)
            work.log(f"step {session.step}: {text}")


class Session:
    """Teacher, student and optimizer at some step. loss and divergence (KL, nats a token) are running means."""

    def __init__(
        self,
        teacher: VisionLanguageModel,
        student: VisionLanguageModel,
        groups: Sequence[Group],
        source: Source,
        config: DistillConfig,
        device: torch.device,
        path: Path,
    ):
        self.config, self.source, self.device, self.path = config, source, device, path
        self.teacher = teacher.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.student = student.to(device, memory_format=torch.channels_last).train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.objective = Objective(
                teacher,
                student,
                temperature=config.temperature,
                hard_share=config.hard_share,
                features=config.features,
                hidden=config.hidden,
            ).to(device)
        every = [*groups, Group(list(self.objective.parameters()), 1.0, False)]
        self.groups = [group for group in every if group.parameters]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": group.parameters, "weight_decay": config.weight_decay if group.decayed else 0.0}
                for group in self.groups
            ],
            lr=0.0,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.step, self.loss, self.divergence = 0, 0.0, 0.0

    def advance(self, batch: Any) -> None:
        config = self.config
        rate = learning_rate(self.step, peak=config.learning_rate, warmup=config.warmup, steps=config.steps)
        for options, group in zip(self.optimizer.param_groups, self.groups, strict=True):
            options["lr"] = rate * group.rate
        batch = self.source.moved(batch, self.device)
        with torch.no_grad():
            expected = self.source.outputs(self.teacher, batch)
        loss, divergence = self.objective(
            expected, self.source.outputs(self.student, batch), self.source.targets(batch)
        )
        value = loss.item()
        if value != value or value in (float("inf"), float("-inf")):
            raise StageError(
                f"distillation: the loss is {value} at step {self.step}",
                hint="Lower the learning rate, or warm up longer.",
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([each for group in self.groups for each in group.parameters], 1.0)
        self.optimizer.step()
        share = max(0.02, 1 / (self.step + 1))
        self.step += 1
        self.loss += share * (value - self.loss)
        self.divergence += share * (divergence.item() - self.divergence)

    def resume(self) -> None:
        """Go on from the saved state, where there is one."""
        if not self.path.exists():
            return
        state = torch.load(self.path, map_location=self.device, weights_only=True)
        self.student.load_state_dict(state["student"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.loss, self.divergence = state["step"], state["loss"], state["divergence"]

    def save(self) -> None:
        """Write the state aside and rename it, so that a kill leaves the old or the new one."""
        state: dict[str, Any] = {
            "student": self.student.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        state |= {"step": self.step, "loss": self.loss, "divergence": self.divergence}
        aside = self.path.with_suffix(".partial")
        torch.save(state, aside)
        os.replace(aside, self.path)
