"""The search, its supernet, and what comes of it."""

from __future__ import annotations

import re

from pipelines.errors import ConfigError
from pipelines.typed import first_line
from stages.checks.training import distillation
from stages.devices.hardware import check_predictable
from stages.schema import DeviceProfile, RecoverConfig, Sampler, SearchConfig, ShortlistConfig, SupernetConfig
from stages.schema.search import LatencySource, StorageKind


def searches(config: RecoverConfig, device: DeviceProfile) -> bool:
    """Whether a device gets a searched model instead of the loaded one."""
    return config.sampler is not Sampler.off


def supernet(config: SupernetConfig, device: DeviceProfile | None = None) -> None:
    """Raise ConfigError for shares that are none, and for counts and rates that mean nothing."""
    for name, shares in vars(config.space).items():
        if name != "multiple" and not all(0 < share <= 1 for share in shares):
            raise ConfigError(
                f"supernet.space.{name} is {shares}", hint="expected shares of the full size: above 0, at most 1"
            )
    if config.space.multiple < 1:
        raise ConfigError(f"supernet.space.multiple is {config.space.multiple}", hint="expected 1 or more")
    for key in ("batch", "warmup", "importance_batches", "threads", "log_every", "checkpoint_every"):
        if getattr(config, key) < 1:
            raise ConfigError(f"supernet.{key} is {getattr(config, key)}", hint="expected 1 or more")
    for key in ("steps", "random", "smallest_weight", "random_weight", "weight_decay", "features", "hidden"):
        if not getattr(config, key) >= 0:
            raise ConfigError(f"supernet.{key} is {getattr(config, key)}", hint="expected 0 or more")
    for key in ("learning_rate", "temperature"):
        if not getattr(config, key) > 0:
            raise ConfigError(f"supernet.{key} is {getattr(config, key)}", hint="expected a number above 0")


def search(config: SearchConfig, device: DeviceProfile | None = None) -> None:
    """Raise ConfigError where nothing would be tried, or a storage has no address."""
    for key in ("trials", "images", "answer_tokens", "text_tokens"):
        if getattr(config, key) < 1:
            raise ConfigError(f"search.{key} is {getattr(config, key)}", hint="expected 1 or more")
    if config.population < 2:
        raise ConfigError(f"search.population is {config.population}", hint="expected 2 or more; 16 is usual")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise ConfigError(f"search.seeds is {config.seeds}", hint="expected different numbers, such as [1,2,3]")
    if not all(0 <= share <= 1 for share in config.designs):
        raise ConfigError(f"search.designs is {config.designs}", hint="expected shares, from 0 to 1")
    if config.prune is not None and not 0 <= config.prune < 1:
        raise ConfigError(f"search.prune is {config.prune}", hint="expected a share below 1, such as 0.1, or null")
    if config.storage.kind is not StorageKind.journal and not config.storage.url:
        example = "HOST:PORT" if config.storage.kind is StorageKind.grpc else "sqlite:////FOLDER/search.db"
        raise ConfigError(
            f"search.storage.kind is {config.storage.kind.value}, and search.storage.url is {config.storage.url}",
            hint=f"set search.storage.url={example}",
        )
    if config.storage.kind is StorageKind.grpc and not re.fullmatch(r".+:\d+", config.storage.url or ""):
        raise ConfigError(f"search.storage.url is {config.storage.url!r}", hint="expected HOST:PORT")
    if config.storage.kind is StorageKind.rdb:
        _check_database(str(config.storage.url))


def _check_database(url: str) -> None:
    """Raise ConfigError for what names no database that could be opened from here; nothing is opened."""
    from sqlalchemy import make_url  # of Optuna's own; others do without

    try:
        make_url(url).get_dialect().import_dbapi()
    except Exception as cause:  # SQLAlchemy's, and each driver's own
        raise ConfigError(
            f"search.storage.url names no database: {first_line(cause)}",  # not the URL: it may hold a password
            hint="expected an address as SQLAlchemy writes it, such as sqlite:////FOLDER/search.db, and its driver "
            "installed; search.storage.kind=journal needs neither",
        ) from cause


def shortlist(config: ShortlistConfig, device: DeviceProfile) -> None:
    """Raise ConfigError where nobody could be listed, and for a device of which the search cannot know, or does not,
    what its bounds are on."""
    if config.candidates < 1:
        raise ConfigError(f"shortlist.candidates is {config.candidates}", hint="expected 1 or more")
    for key in ("bytes", "latency"):
        share = getattr(config, key)
        if share is not None and not share > 0:
            raise ConfigError(f"shortlist.{key} is {share}", hint="expected a share above 0, such as 0.7, or null")
    if config.refine < 0:
        raise ConfigError(f"shortlist.refine is {config.refine}", hint="expected 0 or more; 3 is usual")
    if config.search.latency is LatencySource.predicted:
        check_predictable(device)
    bound = [key for key in ("token_ms", "first_token_ms", "encode_ms") if getattr(device.budgets, key) is not None]
    if config.search.latency is LatencySource.none and bound:
        raise ConfigError(
            f"device {device.name}: budgets.{bound[0]} bounds the latency, and search.latency is none",
            hint=f"set search.latency=predicted, or device.{device.name}.budgets.{bound[0]}=null",
        )


def recovery(config: RecoverConfig, device: DeviceProfile | None = None) -> None:
    """Raise ConfigError where candidates would not be ranked; for their training as `distillation` does, but that no
    step is none."""
    if config.images < 1:
        raise ConfigError(f"recover.images is {config.images}", hint="expected 1 or more; 512 is usual")
    if config.training.steps:
        distillation(config.training, where="recover.training")
