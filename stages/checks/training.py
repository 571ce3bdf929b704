"""Training and distillation."""

from __future__ import annotations

from pipelines.errors import ConfigError
from stages.schema import DeviceProfile, DistillConfig, TrainConfig


def training(config: TrainConfig, device: DeviceProfile | None = None) -> None:
    """Raise ConfigError for a count of steps, images or threads that is not at least one."""
    for key in ("steps", "batch", "warmup", "threads", "log_every", "checkpoint_every"):
        if getattr(config, key) < 1:
            raise ConfigError(f"train.{key} is {getattr(config, key)}", hint="expected 1 or more")
    if config.learning_rate <= 0:
        raise ConfigError(f"train.learning_rate is {config.learning_rate}", hint="expected a number above 0")


def distillation(config: DistillConfig, device: DeviceProfile | None = None, where: str = "distill") -> None:
    """Raise ConfigError for counts that are not at least one, and for rates and shares that mean nothing."""
    for key in ("steps", "batch", "warmup", "threads", "log_every", "checkpoint_every"):
        if getattr(config, key) < 1:
            raise ConfigError(f"{where}.{key} is {getattr(config, key)}", hint="expected 1 or more")
    for key in ("learning_rate", "temperature"):
        if not getattr(config, key) > 0:
            raise ConfigError(f"{where}.{key} is {getattr(config, key)}", hint="expected a number above 0")
    for key in ("weight_decay", "features", "hidden", "grid_rate", "float_rate"):
        if not getattr(config, key) >= 0:
            raise ConfigError(f"{where}.{key} is {getattr(config, key)}", hint="expected 0 or more")
    if not 0 <= config.hard_share <= 1:
        raise ConfigError(f"{where}.hard_share is {config.hard_share}", hint="expected a share, from 0 to 1")
