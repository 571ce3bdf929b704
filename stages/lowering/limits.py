"""What the runtimes demand of sizes. The plan asks it too, so nothing heavy is imported here."""

import re

CACHE_MULTIPLE = (
    32  # Core ML: states whose rows are no multiple of 32 fail on the Neural Engine (apple/coremltools#2631)
)
HEAD_MULTIPLE = 16  # ONNX Runtime: of GroupQueryAttention that turns its heads by their positions
LARGEST_BLOCK, SMALLEST_BLOCK = 128, 16  # ONNX Runtime: of MatMulNBits, powers of two
MINIMUM_OS = {
    "iOS": 18,
    "iPadOS": 18,
    "macOS": 15,
    "tvOS": 18,
    "visionOS": 2,
    "watchOS": 11,
}  # of the packages we write

HEXAGON = "QNNExecutionProvider"  # among a profile's execution providers: the encoder is compiled for its chip's NPU
Problem = tuple[str, str]  # what is wrong, what to do about it


def coreml_sizes(context: int, prefill_chunk: int) -> Problem | None:
    """Why Core ML cannot have these sizes; None if it can."""
    if context <= 0 or context % CACHE_MULTIPLE:
        return (
            f"context is {context}; Core ML needs the rows of a cache to be a multiple of {CACHE_MULTIPLE}",
            f"Set context={max(context + -context % CACHE_MULTIPLE, CACHE_MULTIPLE)}.",
        )
    return chunk_size(context, prefill_chunk, 2)


def onnx_heads(head_dim: int) -> Problem | None:
    """Why ONNX Runtime cannot attend with heads of that width; None if it can."""
    if head_dim % HEAD_MULTIPLE == 0:
        return None
    return (
        f"the decoder's heads have a width of {head_dim}; ONNX Runtime needs a multiple of {HEAD_MULTIPLE}",
        "Choose a model with such heads (text.head_dim in its config.json), or a device with runtime=coreml.",
    )


def chunk_size(context: int, prefill_chunk: int, least: int = 1) -> Problem | None:
    """Why a call of prefill cannot take that many tokens; None if it can."""
    if least <= prefill_chunk <= context:
        return None
    return (
        f"prefill_chunk is {prefill_chunk}; expected {least} to {context}, the context",
        f"Set prefill_chunk={min(64, context)}.",
    )


def coreml_system(minimum_os: str) -> Problem | None:
    """Why the packages would not load on that system; None if they do."""
    found = re.fullmatch(r"([A-Za-z]+)(\d+)(\.\d+)*", minimum_os)
    if found and found[1] in MINIMUM_OS and int(found[2]) >= MINIMUM_OS[found[1]]:
        return None
    least = f"{found[1]}{MINIMUM_OS[found[1]]}" if found and found[1] in MINIMUM_OS else f"iOS{MINIMUM_OS['iOS']}"
    every = ", ".join(f"{name}{version}" for name, version in MINIMUM_OS.items())
    return (
        f"minimum_os is '{minimum_os}'; the packages hold states and block-wise weights, which need at least {every}",
        f"Set minimum_os={least}.",
    )


def block_size(columns: int, group_size: int) -> int | None:
    """The block of MatMulNBits for a group: a power of two, 16 to 128, that divides it; a whole row may be padded.

    None where there is none (groups of 8, of 24, ...).
    """
    block = min(group_size & -group_size, LARGEST_BLOCK)
    if block >= SMALLEST_BLOCK:
        return block
    if group_size == columns:
        return SMALLEST_BLOCK if 0 < columns % (2 * SMALLEST_BLOCK) <= SMALLEST_BLOCK else 2 * SMALLEST_BLOCK
    return None
