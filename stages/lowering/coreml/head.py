"""The output head in parts: the Neural Engine does not take a layer of 150,000 outputs.

Each part is a linear layer on its own rows of the same codes and scales, so that the scores are the same bits. Core ML
cannot refer to a part of a tensor: where the embedding table is tied to the head, the table is looked up in the parts
too, exactly. Whole beside its parts, that of a 0.5B model in int4 would be 72 MB of 339; in the parts it costs 48 small
operations a call.
"""

from itertools import pairwise

from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Var
from torch.fx import Node

from stages.lowering.coreml.builder import FunctionBuilder
from stages.lowering.coreml.stored import Rows
from stages.lowering.graph import Weight, operator_name


def head_parts(context: FunctionBuilder, node: Node, weight: Weight) -> list[Rows]:
    """The rows of each part, if node is a linear layer that makes an output and is wider than `head_width`; else [].

    As few parts as can be, but equal ones, where twice as many would do.
    """
    rows, width = weight.shape[0], context.head_width
    is_head = operator_name(node) == "aten.linear.default" and any(user.op == "output" for user in node.users)
    if not is_head or not 0 < width < rows:
        return []
    least = -(-rows // width)
    count = next((count for count in range(least, 2 * least) if rows % count == 0), least)
    return list(pairwise(rows * part // count for part in range(count + 1)))


def tied_parts(context: FunctionBuilder, table: Node, weight: Weight) -> list[Rows]:
    """The equal parts of the head that has the same weight as an embedding table, if there is one that is split."""
    for user in table.users:
        parts = head_parts(context, user, weight)
        if len({last - first for first, last in parts}) == 1:
            return parts
    return []


def look_up(context: FunctionBuilder, weight: Weight, indices: Var, parts: list[Rows]) -> Var:
    """Rows of a table that is stored in equal parts: looked up in each, and that of the right part chosen."""
    size = parts[0][1] - parts[0][0]
    row, number = mb.mod(x=indices, y=size), mb.expand_dims(x=mb.floor_div(x=indices, y=size), axes=[-1])
    found = None
    for index, part in enumerate(parts):
        here = mb.gather(x=context.weight(weight, part), indices=row, axis=0, validate_indices=False)
        found = here if found is None else mb.select(cond=mb.equal(x=number, y=index), a=here, b=found)
    return found
