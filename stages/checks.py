"""What can be refused before anything runs. Called at plan time, so only light imports.

Each check is called as check(config, device) with the stage's own slice of the configuration and, for a stage that is
per device, the device; it raises ConfigError.
"""

from __future__ import annotations

import re
from dataclasses import asdict

from pipelines.errors import ConfigError, nearest
from pipelines.typed import first_line
from stages.devices.hardware import check_predictable
from stages.evaluation.names import MODEL_METRICS, PARITY_METRICS, PREDICTED_METRICS, TASK_METRICS, TASKS
from stages.lowering.limits import HEXAGON, Problem, block_size, chunk_size, coreml_sizes, coreml_system
from stages.lowering.socs import hexagon_problem
from stages.quantizers.candidates import check_candidates
from stages.quantizers.choices import Choice, allocates, check_choices
from stages.quantizers.choices import uses_statistics as choices_use_statistics
from stages.runtimes.processor import machine
from stages.schema import (
    CalibrateConfig,
    ConvertConfig,
    DeviceProfile,
    DistillConfig,
    Format,
    Gate,
    Prepacking,
    ProbeConfig,
    QuantizeConfig,
    QuestionsConfig,
    RecoverConfig,
    Runtime,
    Sampler,
    SearchConfig,
    SensitivityConfig,
    ShortlistConfig,
    SupernetConfig,
    TrainConfig,
    ValidateConfig,
    ValidationKind,
)
from stages.schema.search import LatencySource, StorageKind

# Where the bits of each role are said; check_choices gives their choices first, in the order of Role.
_KEYS = ("bits", "head", "embeddings", "convolutions", "spatial")
# What takes the place of a property that a device cannot hold.
_WITHOUT = {
    "palette-vectors": {"vector": "1"},
    "palette-channel-scales": {"channel_scale": "false"},
    "sparse": {"sparsity": "0", "sparsity_pattern": "null"},
}


def weight_formats(config: QuantizeConfig, device: DeviceProfile) -> None:
    """Raise ConfigError where `device`'s runtime cannot hold the weights that `config` asks for, or nobody can."""
    if config.training:
        distillation(config.training, where="quantize.training")
    runtime = f"{device.name} ({device.runtime.value})"
    if config.activations and device.runtime is Runtime.coreml:
        raise ConfigError(
            f"quantize: {runtime} rounds no activations; quantize.activations is {config.activations}",
            hint="Set quantize.activations=0, or build for a device of ONNX Runtime.",
        )
    keys = () if allocates(config) else _KEYS
    for index, choice in enumerate(check_choices(config)):
        missing = [name for name in choice.needs() if name not in device.weight_formats]
        if missing:
            raise ConfigError(
                f"quantize: {runtime} cannot hold {missing[0]} weights; it can hold {', '.join(device.weight_formats)}",
                hint=_instead(choice, missing[0], keys[index] if index < len(keys) else "", device),
            )
        grouped = choice.bits and choice.format is Format.affine and choice.group_size
        if device.runtime is Runtime.onnxruntime and grouped and block_size(0, choice.group_size) is None:
            raise ConfigError(
                f"quantize: {runtime} cannot hold groups of {choice.group_size} weights; expected a multiple of 16",
                hint=f"for this device, '+device.{device.name}.overrides.quantize.group_size=32'; 0 is one scale a row",
            )


def sizes(config: ConvertConfig, device: DeviceProfile) -> None:
    """Raise ConfigError where `device`'s runtime cannot have the context or the chunk that `config` says."""
    if problem := _processor(device):
        name = f"device.{device.name}"
        raise ConfigError(f"{name}: {problem[0]}", hint=problem[1].replace("Set ", f"set {name}.").rstrip("."))
    if device.runtime is Runtime.coreml:
        problem = coreml_sizes(config.context, config.prefill_chunk)
    elif config.context < 1:
        problem = f"context is {config.context}; expected 1 or more", "Set context=256."
    else:
        problem = chunk_size(config.context, config.prefill_chunk)
    if problem:
        hint = problem[1].replace("Set ", "set convert.").rstrip(".")
        raise ConfigError(
            f"convert, for {device.name}: {problem[0]}",
            hint=f"{hint}; for this device alone, '+device.{device.name}.overrides.{hint.removeprefix('set ')}'",
        )


def _processor(device: DeviceProfile) -> Problem | None:
    """Why nothing could be made for the device's processor or system."""
    if device.runtime is Runtime.coreml:
        return coreml_system(device.minimum_os)
    if device.prepacking is Prepacking.saved and device.architecture != machine():
        return (
            f"prepacking=saved, for {device.architecture}, and this machine is {machine()}: weights are laid out ahead "
            "for the kind of processor that the build runs on",
            "Set prepacking=load.",
        )
    return hexagon_problem(device.chip) if HEXAGON in device.execution_providers else None


def uses_statistics(config: QuantizeConfig, device: DeviceProfile) -> bool:
    """Whether quantizing needs a calibration."""
    return choices_use_statistics(config)


def computes_in_float16(config: ConvertConfig, device: DeviceProfile) -> bool:
    """Whether values may leave the range in which the runtime computes."""
    return device.runtime is Runtime.coreml or HEXAGON in device.execution_providers


def asks_questions(config: ValidateConfig, device: DeviceProfile) -> bool:
    """Whether validation needs the float model's answers."""
    return config.kind is ValidationKind.questions


def compares_numbers(config: ValidateConfig, device: DeviceProfile) -> bool:
    """Whether validation needs torch's numbers."""
    return config.kind is ValidationKind.parity


def probe(config: ProbeConfig, device: DeviceProfile | None = None) -> None:
    """Raise ConfigError where nothing would be run."""
    for key in ("images", "tokens", "threads"):
        if getattr(config, key) < 1:
            raise ConfigError(f"probe.{key} is {getattr(config, key)}", hint="expected 1 or more")


def validation(config: ValidateConfig, device: DeviceProfile | None = None) -> None:
    """Raise ConfigError for a gate on what is not measured, or one that says nothing, and for an idle bootstrap."""
    if config.resamples < 1:
        raise ConfigError(f"validate.resamples is {config.resamples}", hint="expected 1 or more; 2000 is usual")
    if config.threads < 1:
        raise ConfigError(f"validate.threads is {config.threads}", hint="expected 1 or more")
    if not 0 < config.confidence < 1:
        raise ConfigError(
            f"validate.confidence is {config.confidence}", hint="expected more than 0 and less than 1, such as 0.95"
        )
    for gate in config.gates:
        _check_gate(gate, config.kind)
    if device:
        _check_budgets(config, device)


def calibration(config: CalibrateConfig, device: DeviceProfile | None = None) -> None:
    """Raise ConfigError where nothing would be drawn."""
    for key, least in (("samples", 1), ("batch", 1), ("tokens", 2), ("threads", 1)):
        if getattr(config, key) < least:
            raise ConfigError(f"calibrate.{key} is {getattr(config, key)}", hint=f"expected {least} or more")
    for key in ("image_token_weight", "answer_token_weight"):
        if getattr(config, key) < 0:
            raise ConfigError(
                f"calibrate.{key} is {getattr(config, key)}",
                hint="expected 0 or more; 1 counts such a token as any token of text",
            )


def sensitivity(config: SensitivityConfig, device: DeviceProfile | None = None) -> None:
    """Raise ConfigError where nothing would compete, be drawn, or where a candidate is none."""
    for key in ("samples", "batch"):
        if getattr(config, key) < 1:
            raise ConfigError(f"sensitivity.{key} is {getattr(config, key)}", hint="expected 1 or more; 128 is usual")
    if config.prune < 1:
        raise ConfigError(f"sensitivity.prune is {config.prune}", hint="expected 1 or more; 4 is usual")
    if not config.candidates:
        raise ConfigError(
            "sensitivity.candidates is empty", hint="conf/sensitivity/default.yaml has a list to begin with"
        )
    check_candidates(config)


def allocates_for(config: QuantizeConfig, device: DeviceProfile) -> bool:
    """Whether formats are chosen for each weight by measurement."""
    return allocates(config)


def questions(config: QuestionsConfig, device: DeviceProfile | None = None) -> None:
    """Raise ConfigError where nothing would be asked."""
    if config.per_task < 1:
        raise ConfigError(f"questions.per_task is {config.per_task}", hint="expected 1 or more; 150 is usual")


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
    if config.search.latency is LatencySource.roofline:
        check_predictable(device)
    bound = [key for key in ("token_ms", "first_token_ms", "encode_ms") if getattr(device.budgets, key) is not None]
    if config.search.latency is LatencySource.none and bound:
        raise ConfigError(
            f"device {device.name}: budgets.{bound[0]} bounds the latency, and search.latency is none",
            hint=f"set search.latency=roofline, or device.{device.name}.budgets.{bound[0]}=null",
        )


def recovery(config: RecoverConfig, device: DeviceProfile | None = None) -> None:
    """Raise ConfigError where candidates would not be ranked; for their training as `distillation` does, but that no
    step is none."""
    if config.images < 1:
        raise ConfigError(f"recover.images is {config.images}", hint="expected 1 or more; 512 is usual")
    if config.training.steps:
        distillation(config.training, where="recover.training")


def _instead(choice: Choice, missing: str, key: str, device: DeviceProfile) -> str:
    """The nearest that the device holds: first of the same kind, then of as many bits; then how to ask for it."""
    prefix = f"+device.{device.name}.overrides.quantize"
    if missing in _WITHOUT:
        return "for this device, " + " ".join(f"'{prefix}.{k}={v}'" for k, v in _WITHOUT[missing].items())

    def distance(name: str) -> tuple[bool, int, int]:
        bits = _bits(name)
        return not name.startswith(choice.format.value), abs(bits - choice.bits), -bits

    held = [name for name in device.weight_formats if _bits(name)]
    if not held:
        return f"choose quantize=none: {device.name} holds unquantized weights only"
    best = min(held, key=distance)
    changes = {}
    if not best.startswith(choice.format.value):
        changes["format"] = best.split("-")[0]
        if choice.method.value != "gptq":
            changes["method"] = "gptq"
    if _bits(best) != choice.bits:
        changes[key] = str(_bits(best))
    if not key:
        return f"the nearest is {best}; say so in that entry of quantize.overrides"
    return f"the nearest is {best}; for this device, " + " ".join(f"'{prefix}.{k}={v}'" for k, v in changes.items())


def _bits(name: str) -> int:
    """Of affine-int4 and palette-4, 4; of float16, 0."""
    found = re.fullmatch(r"(?:affine-int|palette-)(\d+)", name)
    return int(found[1]) if found else 0


def _check_budgets(config: ValidateConfig, device: DeviceProfile) -> None:
    """Raise ConfigError for a budget that nothing keeps, and for a bound on latency where none can be predicted."""
    budgets = asdict(device.budgets)
    for name, bound in budgets.items():
        if bound is not None and bound <= 0:
            raise ConfigError(
                f"device {device.name}: budgets.{name} is {bound}",
                hint="expected a number above 0, or null for no limit",
            )
    bounded = any(bound is not None for name, bound in budgets.items() if name.endswith("_ms"))
    if bounded or any(gate.metric in PREDICTED_METRICS for gate in config.gates):
        check_predictable(device)


def _check_gate(gate: Gate, kind: ValidationKind) -> None:
    known = PARITY_METRICS if kind is ValidationKind.parity else (*TASK_METRICS, *MODEL_METRICS)
    if gate.metric in (*TASK_METRICS, *PARITY_METRICS) and gate.metric not in known:
        raise ConfigError(
            f"validate.gates: {gate.metric} is not measured where validate.kind is {kind.value}",
            hint=f"it measures: {', '.join(known)}",
        )
    if gate.metric not in known:
        raise ConfigError(
            f"validate.gates: there is no metric '{gate.metric}'",
            hint=nearest(gate.metric, known) or f"metrics: {', '.join(known)}",
        )
    if gate.task is not None and gate.metric in PARITY_METRICS:
        raise ConfigError(
            f"validate.gates: {gate.metric} is not measured task by task; found task '{gate.task}'",
            hint="set task: null",
        )
    if gate.task is not None and gate.task not in TASKS:
        raise ConfigError(
            f"validate.gates: there is no task '{gate.task}'",
            hint=nearest(gate.task, TASKS) or f"tasks: {', '.join(TASKS)}",
        )
    if gate.min is None and gate.max is None:
        raise ConfigError(f"validate.gates: the gate on {gate.metric} bounds nothing", hint="give it a min or a max")
    if gate.min is not None and gate.max is not None and gate.min > gate.max:
        raise ConfigError(
            f"validate.gates: the gate on {gate.metric} has a min of {gate.min} above its max of {gate.max}",
            hint="nothing could pass it; exchange them",
        )
