"""The operators that the executor knows, and of coremltools' those that it does not, as the README shows them.

python -m stages.runtimes.coreml_reference.table
"""

from stages.runtimes.coreml_reference.constexpr import CONSTEXPR
from stages.runtimes.coreml_reference.control import CONTROL
from stages.runtimes.coreml_reference.operators import OPERATORS
from stages.runtimes.coreml_reference.translate import STATE_OPERATORS

TITLES = {
    "operators": "arithmetic, comparisons, reductions",
    "activations": "activations, quantized activations",
    "layers": "products, convolutions, pooling, normalisation, attention",
    "tensors": "shapes, slices, joins",
    "scatter": "gathers, scatters, sorts",
    "images": "resizing, resampling, blocks",
    "recurrent": "recurrence",
}
NOT_SUPPORTED = {
    "affine": "resampling by a matrix",
    "classify": "class labels",
    "conv_quantized": "Core ML's own, not made by the converter",
    "crop_resize": "regions of interest",
    "list_gather, list_length, list_read, list_scatter, list_write, make_list": "lists",
    "non_maximum_suppression": "its order of equal scores is not documented",
    "random_bernoulli, random_categorical, random_normal, random_uniform": "Core ML's numbers cannot be had elsewhere",
    "reshape_like": "shapes by reference",
}


def operator_table() -> str:
    """A Markdown table: what is known, by kind; then what is not, and why."""
    groups: dict[str, list[str]] = {title: [] for title in TITLES.values()}
    for name, rule in OPERATORS.items():
        title = TITLES.get(rule.__module__.rpartition(".")[2])
        if title:  # a rule from elsewhere is its owner's to list
            groups[title].append(name)
    groups |= {"states": list(STATE_OPERATORS), "control flow": list(CONTROL), "compressed weights": list(CONSTEXPR)}
    rows = [f"| {title} | {', '.join(sorted(names))} |" for title, names in groups.items()]
    missing = [f"| {names} | {reason} |" for names, reason in NOT_SUPPORTED.items()]
    return "\n".join(
        ["| kind | operators |", "|---|---|", *rows, "", "| not known | what it is |", "|---|---|", *missing]
    )


if __name__ == "__main__":
    print(operator_table())
