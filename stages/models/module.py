"""A user's own torch module, named in the configuration, as a checkpoint."""

from pathlib import Path

from pipelines.errors import CheckpointError
from stages.models.layouts import native
from stages.models.layouts.tensors import Contents, check_tensors
from stages.models.layouts.weights import WeightFiles
from stages.models.vlm import ModelConfig as Configuration
from stages.models.vlm import ModuleConfig
from stages.schema import ModelConfig


def read_module(config: ModelConfig, folder: Path) -> Contents:
    """The module that config.module makes, with the weights in folder, whose names are its state_dict's.

    Raises CheckpointError where it cannot be made or the weights are another's.
    """
    assert config.module is not None
    if not isinstance(config.module.get("_target_"), str):
        raise CheckpointError(
            f"model.module has no _target_; found {', '.join(config.module) or 'nothing'}",
            hint="Name the class: model.module={_target_: package.module.Class, ARGUMENT: VALUE}.",
        )
    arguments = {key: value for key, value in config.module.items() if key != "_target_"}
    module = ModuleConfig(
        target=str(config.module["_target_"]),
        arguments=arguments,
        inputs={name: dict(each) for name, each in (config.inputs or {}).items()},
        outputs=list(config.outputs or []),
    )
    found = Configuration(None, None, None, module)
    weights = WeightFiles(folder)
    tensors = native.tensors_of(found)
    check_tensors(weights, tensors, of=module.target, integers=True)
    return Contents(found, None, None, weights, tensors)
