"""What a store holds against what was chosen: a weight that a method skipped, or treated otherwise, fails the stage."""

from collections.abc import Mapping

from pipelines.errors import StageError
from pipelines.workspace import Workspace
from stages.quantizers.choices import Choice, kept_of
from stages.quantizers.formats import TensorFormat


def check_coverage(chosen: Mapping[str, Choice], formats: Mapping[str, TensorFormat]) -> None:
    """Raises StageError, naming the first weight whose format, bits or share of zeros is not what was chosen."""
    for name, choice in chosen.items():
        form = formats.get(name)
        found = "nothing" if form is None else " ".join(_stored(form, choice))
        expected = " ".join(choice.needs())
        if found != expected:
            raise StageError(
                f"weight '{name}' was to become {expected} and is stored as {found}",
                hint="The method at fault is quantize.method; an entry of quantize.overrides gives the weight another.",
            )
        if form is not None and choice.sparse:
            _check_zeros(name, choice, form)


def report_coverage(formats: Mapping[str, TensorFormat], work: Workspace) -> None:
    """Log each format with its weights and bytes; record bytes, the bits of an average parameter and share of zeros."""
    groups: dict[str, list[TensorFormat]] = {}
    for form in formats.values():
        groups.setdefault(_label(form), []).append(form)
    for label, forms in sorted(groups.items()):
        parameters, size = sum(form.size for form in forms), sum(form.bytes for form in forms)
        work.log(
            f"{label}: {len(forms)} tensors, {parameters:,} parameters, {size:,} bytes, "
            f"{8 * size / max(parameters, 1):.2f} bits each"
        )
    parameters, size = sum(form.size for form in formats.values()), sum(form.bytes for form in formats.values())
    zeros = sum(form.size - form.kept for form in formats.values() if form.sparse)
    work.metric("weight_bytes", size)
    work.metric("bits_per_parameter", 8 * size / max(parameters, 1))
    work.metric("sparsity", zeros / max(parameters, 1))


def _stored(form: TensorFormat, choice: Choice) -> tuple[str, ...]:
    if form.format == "float" and not choice.bits:  # float32 where float16 is too narrow
        return ("float16", *form.needs()[1:])
    return form.needs()


def _check_zeros(name: str, choice: Choice, form: TensorFormat) -> None:
    if choice.sparsity_pattern:
        kept, size = kept_of(choice.sparsity_pattern)
        wanted = 1 - kept / size
    else:
        wanted = choice.sparsity
    if abs(form.sparsity - wanted) * form.size > max(1.0, 1e-6 * form.size):
        raise StageError(f"weight '{name}' has {form.sparsity:.4%} zeros; {wanted:.4%} were asked for")


def _label(form: TensorFormat) -> str:
    size = f", groups of {form.group_size}" if form.group_size else ""
    return " ".join(form.needs()) + (size if form.format != "float" else "")
