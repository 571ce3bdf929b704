"""All subnets trained together, by the sandwich rule with in-place distillation (arXiv:1903.05134)."""

import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch

from pipelines.errors import StageError
from pipelines.workspace import Workspace
from stages.distillation.objective import Objective
from stages.distillation.source import Outputs, Source
from stages.elastic.space import Space
from stages.elastic.view import Elastic
from stages.models.training import learning_rate
from stages.schema.search import SupernetConfig


def train(
    elastic: Elastic, space: Space, source: Source, config: SupernetConfig, work: Workspace, state: str = "supernet.pt"
) -> None:
    """Train the full model's tensors in place for config.steps steps.

    A run that was killed goes on from its last saved state, and ends with the same bytes, on the same machine with the
    same threads. Raises StageError where the loss is no longer finite.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = torch.get_num_threads()
    try:
        if device.type == "cpu":
            torch.set_num_threads(config.threads)
        session = Session(elastic, space, source, config, device, work.scratch / state)
        session.resume()
        _run(session, work)
    finally:
        torch.set_num_threads(before)
    elastic.tensors = {name: tensor.detach().cpu() for name, tensor in session.tensors.items()}


def _run(session: "Session", work: Workspace) -> None:
    config, first, started = session.config, session.step, time.monotonic()
    for batch in session.source.batches(session.step, config.steps):
        session.advance(batch)
        if session.step % config.checkpoint_every == 0 and session.step < config.steps:
            session.save()
        if session.step % config.log_every == 0 or session.step == config.steps:
            seconds = (time.monotonic() - started) / (session.step - first) * (config.steps - session.step)
            for which, value in session.divergence.items():
                work.metric(f"kl_{which}", value, session.step)
            text = ", ".join(f"{which} {value:.4f}" for which, value in session.divergence.items())
            text = f"KL of the {text} (to the largest), {seconds / 60:.1f} min to go"
            work.progress(session.step, config.steps, text)
            work.log(f"step {session.step}: {text}")


class Session:
    """A training in progress. divergence: running means of the KL to the largest subnet, in nats a token."""

    def __init__(
        self,
        elastic: Elastic,
        space: Space,
        source: Source,
        config: SupernetConfig,
        device: torch.device,
        path: Path,
    ):
        self.elastic, self.space, self.source, self.config = elastic, space, source, config
        self.device, self.path = device, path
        self.tensors = {name: tensor.to(device).requires_grad_() for name, tensor in elastic.tensors.items()}
        elastic.tensors = self.tensors
        self.loaded = Elastic(
            elastic.full, {name: each.detach().clone() for name, each in self.tensors.items()}, elastic.layers
        )
        every = list(self.tensors.values())
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [each for each in every if each.ndim > 1], "weight_decay": config.weight_decay},
                {"params": [each for each in every if each.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=0.0,
            betas=(0.9, 0.98),
        )
        self.step = 0
        self.divergence = {"smallest": 0.0, "others": 0.0}

    def advance(self, batch: Any) -> None:
        config = self.config
        rate = learning_rate(self.step, peak=config.learning_rate, warmup=config.warmup, steps=config.steps)
        for options in self.optimizer.param_groups:
            options["lr"] = rate
        batch = self.source.moved(batch, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        taught = self._largest(batch)
        random = Random(f"supernet:{config.seed}:{self.step}")
        self._learn(self.space.smallest, batch, taught, "smallest")
        for _ in range(config.random):
            self._learn(self.space.drawn(random), batch, taught, "others")
        torch.nn.utils.clip_grad_norm_(self.tensors.values(), 1.0)
        self.optimizer.step()
        self.step += 1

    def _largest(self, batch: Any) -> Outputs:
        """Stay with what the model said when it was loaded; what it says now is what the others learn."""
        with torch.no_grad():
            expected = self._outputs(self.space.largest, batch, self.loaded)
        found = self._outputs(self.space.largest, batch, self.elastic)
        loss, _ = self._objective(self.space.largest)(expected, found, self.source.targets(batch))
        self._backward(loss)
        return Outputs(found.logits.detach(), found.visual.detach(), [each.detach() for each in found.hidden])

    def _learn(self, architecture: Mapping[str, int], batch: Any, taught: Outputs, which: str) -> None:
        found = self._outputs(architecture, batch, self.elastic)
        loss, divergence = self._objective(architecture)(taught, found, self.source.targets(batch))
        self._backward(loss * (self.config.smallest_weight if which == "smallest" else self.config.random_weight))
        share = max(0.02, 1 / (self.step + 1))
        self.divergence[which] += share * (divergence.item() - self.divergence[which])

    def _outputs(self, architecture: Mapping[str, int], batch: Any, elastic: Elastic) -> Outputs:
        config = self.space.configured(architecture)
        outputs: Outputs = elastic.answers(config, partial(self.source.outputs, batch=batch))
        return outputs

    def _objective(self, architecture: Mapping[str, int]) -> Objective:
        """Against the largest. All subnets have the decoder's width, so that nothing in it is trained."""
        whole, part = (
            self.elastic.skeleton(self.space.configured(each)) for each in (self.space.largest, architecture)
        )
        config = self.config
        return Objective(
            whole,
            part,
            temperature=config.temperature,
            hard_share=config.hard_share,
            features=config.features,
            hidden=config.hidden,
        )

    def _backward(self, loss: torch.Tensor) -> None:
        if not loss.isfinite():
            raise StageError(
                f"supernet: the loss is {loss.item()} at step {self.step}",
                hint="Lower supernet.learning_rate, or warm up longer.",
            )
        loss.backward()

    def resume(self) -> None:
        """Go on from the saved state, where there is one."""
        if not self.path.exists():
            return
        state = torch.load(self.path, map_location=self.device, weights_only=True)
        with torch.no_grad():
            for name, tensor in state["tensors"].items():
                self.tensors[name].copy_(tensor)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.divergence = state["step"], state["divergence"]

    def save(self) -> None:
        """Write the state aside and rename it, so that a kill leaves the old or the new one."""
        state = {"tensors": self.tensors, "optimizer": self.optimizer.state_dict()}
        state |= {"step": self.step, "divergence": self.divergence}
        aside = self.path.with_suffix(".partial")
        torch.save(state, aside)
        os.replace(aside, self.path)
