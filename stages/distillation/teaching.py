"""A student checkpoint taught by a teacher checkpoint, and written."""

import torch
from safetensors.torch import save_file
from torch import nn

from pipelines.errors import CheckpointError, StageError
from pipelines.workspace import Workspace
from stages.artifacts import Checkpoint
from stages.distillation.session import Group, distil
from stages.distillation.source import ProceduralQuestions, Source
from stages.schema import DistillConfig


def teach(
    teacher: Checkpoint, student: Checkpoint, config: DistillConfig, work: Workspace, source: Source | None = None
) -> Checkpoint:
    """Write the student after config.steps steps to work.out, with its own description and dtypes.

    A matrix that comes with some zeros is taken for pruned, and keeps them. The student may have other widths, depths
    and image sizes than the teacher, and must have its tokenizer and prompt. source: what to learn from; None: the
    reference data's training questions. Raises CheckpointError for two that do not fit, StageError where training
    diverges. Killed at any moment, it goes on from its last saved state.
    """
    check_fit(teacher, student)
    source = source or ProceduralQuestions(student, seed=config.seed, batch=config.batch, workers=1)
    model = student.model()
    _keep_zeros(model)
    distil(teacher.model(), model, _groups(model), source, config, work)
    save_file(_stored(model, student), work.out / "model.safetensors")
    student.copy_description(work.out)
    return Checkpoint(work.out)


def check_fit(teacher: Checkpoint, student: Checkpoint) -> None:
    """Raise CheckpointError unless both are answered by the same tokens, asked in the same way, about images."""
    for which, checkpoint in (("teacher", teacher), ("student", student)):
        if checkpoint.config().vision is None:
            raise CheckpointError(
                f"distill: the {which} ({checkpoint.path}) has no tower, and the questions are about images",
                hint="Expected two vision-language models.",
            )
    if teacher.tokenizer().get_vocab() != student.tokenizer().get_vocab():
        raise CheckpointError(
            f"distill: teacher and student have other vocabularies, of {teacher.tokenizer().get_vocab_size()} and "
            f"{student.tokenizer().get_vocab_size()} tokens",
            hint="Make the student with the teacher's tokenizer.json.",
        )
    widths = [checkpoint.config().text.vocab_size for checkpoint in (teacher, student)]
    if widths[0] != widths[1]:
        raise CheckpointError(
            f"distill: the teacher's head has {widths[0]} rows, the student's {widths[1]}",
            hint=f"Set text.vocab_size to {widths[0]} in the student's config.json.",
        )
    for key in ("prompt_template", "image_token", "end_token"):
        expected, found = teacher.preprocessing()[key], student.preprocessing()[key]
        if expected != found:
            raise CheckpointError(
                f"distill: preprocessing.json: {key} is {found!r} in the student and {expected!r} in the teacher",
                hint="Both are asked the same questions: copy the teacher's.",
            )


def _keep_zeros(model: nn.Module) -> None:
    """No gradient for the zeros of matrices that are not all zeros: then AdamW leaves them."""
    for parameter in model.parameters():
        kept = parameter.detach() != 0
        if parameter.ndim > 1 and kept.any() and not kept.all():
            parameter.register_hook(kept.mul)


def _groups(model: nn.Module) -> list[Group]:
    """Vectors (norms, biases) are not decayed."""
    parameters = list(model.parameters())
    return [
        Group([each for each in parameters if each.ndim > 1], 1.0, True),
        Group([each for each in parameters if each.ndim <= 1], 1.0, False),
    ]


def _stored(model: nn.Module, student: Checkpoint) -> dict[str, torch.Tensor]:
    with student.tensors() as tensors:
        state = {
            name: value.detach().to(tensors[name].dtype).contiguous() for name, value in model.state_dict().items()
        }
    for name, value in state.items():
        if not value.isfinite().all():
            raise StageError(
                f"distill: '{name}' grew beyond {str(value.dtype).removeprefix('torch.')}'s range",
                hint="Lower distill.learning_rate.",
            )
    return state
