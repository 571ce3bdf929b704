"""What must be shown, each with its bound: ours against the best peer at a size, answers kept, automatic choices."""

from collections.abc import Iterator, Sequence

from engine.figures import Figure

from quantization.assembled import Basis
from quantization.entries import Entry, frontier

# By average bits of the matrices' weights, scales and palettes counted: [from, to).
CLASSES = {4: (3.6, 4.8), 3: (2.7, 3.4), 2: (1.7, 2.65), 1: (0.9, 1.6)}
KL_RATIO = {4: 0.5, 3: 0.4, 2: 0.8}
RETENTION = {4: 0.98, 3: 0.97}
FLIPS = 0.02
AUTO_RATIO = 0.8
QAT_BITS, QAT_RETENTION, BINARY_RETENTION = 2.5, 0.95, 0.90


def targets(entries: Sequence[Entry]) -> list[Figure]:
    """The figures of benchmarks/quantization.py's promise. What was not measured gives none."""
    good = [each for each in entries if not each.missing]
    ours = [each for each in good if each.ours]
    return [
        *(figure for bits in KL_RATIO for figure in _against_peers(bits, good)),
        *_trained(ours),
        *(figure for each in ours if each.kind == "auto" for figure in _automatic(each, ours)),
        *(figure for each in ours if each.kind == "floor" for figure in _floor(each, ours)),
    ]


def of_class(entries: Sequence[Entry], bits: int) -> list[Entry]:
    low, high = CLASSES[bits]
    return [each for each in entries if low <= each.matrix_bits < high]


def _against_peers(bits: int, entries: Sequence[Entry]) -> Iterator[Figure]:
    """The peer of least KL in the class, and what of ours has the least KL at no more bytes, without training."""
    peers = of_class([each for each in entries if not each.ours and each.counted and each.basis is Basis.same], bits)
    ours = [each for each in entries if each.ours and each.kind in ("uniform", "auto")]
    if not peers or not ours:
        return
    best = min(peers, key=lambda each: each.kl)
    mine = _best_within(ours, best.bytes)
    if mine is None:
        return
    how = f"{mine.label}, {mine.bytes:,} bytes: {mine.kl:.5f}; {best.who} {best.label}, {best.bytes:,}: {best.kl:.5f}"
    yield Figure(f"{bits} bits: KL, ours / best peer", mine.kl / best.kl, "", how, KL_RATIO[bits])
    ratios = [
        (found.kl / each.kl, f"{found.label} against {each.who} {each.label}")
        for each in frontier(peers)
        if (found := _best_within(ours, each.bytes)) is not None
    ]
    if ratios:
        worst, words = max(ratios)
        yield Figure("  at the worst place of the peers' frontier", worst, "", words)
    if bits in RETENTION and mine.tasks:
        task = min(mine.tasks, key=lambda name: mine.tasks[name]["retention_low"])
        kept = f"{mine.label}; its worst task, {task}: {mine.tasks[task]['retention']:.1%} kept"
        yield Figure(f"{bits} bits: retention, lower bound", 100 * mine.lowest, "%", kept, 100 * RETENTION[bits], False)
        bound = 100 * FLIPS if bits == 4 else None
        yield Figure(f"{bits} bits: flips", 100 * mine.overall["flips"], "%", "of all questions", bound)


def _trained(ours: Sequence[Entry]) -> Iterator[Figure]:
    trained = [each for each in ours if each.kind == "qat" and each.tasks]
    small = [each for each in trained if each.weight_bits <= QAT_BITS]
    if small:
        best = max(small, key=lambda each: each.lowest)
        how = f"{best.label}, {best.weight_bits:.3f} bits a parameter; the worst task's lower bound"
        yield Figure("2 bits, trained: retention", 100 * best.lowest, "%", how, 100 * QAT_RETENTION, False)
    binary = of_class(trained, 1)
    if binary:
        best = max(binary, key=lambda each: each.overall["retention_low"])
        low = 100 * best.overall["retention_low"]
        how = f"{best.label}, {best.weight_bits:.3f} bits a parameter; lower bound over all questions"
        yield Figure("1 bit, trained: retention", low, "%", how, 100 * BINARY_RETENTION, False)


def _automatic(each: Entry, ours: Sequence[Entry]) -> Iterator[Figure]:
    """Against every uniform choice of no more bytes than the budget."""
    budget = int(each.bound * each.parameters / 8)
    over = f"{each.weights:,} bytes of weights; the budget is {budget:,}"
    yield Figure(f"{each.label}: bytes / budget", each.weights / budget, "", over, 1.0)
    uniform = [other for other in ours if other.kind == "uniform" and other.weights <= budget]
    if uniform:
        best = min(uniform, key=lambda other: other.kl)
        how = f"{each.kl:.5f}; {best.label}, {best.weights:,} bytes of weights: {best.kl:.5f}"
        yield Figure(f"{each.label}: KL, auto / best uniform", each.kl / best.kl, "", how, AUTO_RATIO)


def _floor(each: Entry, ours: Sequence[Entry]) -> Iterator[Figure]:
    how = f"{each.kl:.5f} on these questions; the floor is {each.bound}"
    yield Figure(f"{each.label}: KL / floor", each.kl / each.bound, "", how, 1.0)
    keeping = [other for other in ours if other.kind == "uniform" and other.kl <= each.bound]
    if keeping:
        least = min(keeping, key=lambda other: other.bytes)
        how = f"{each.bytes:,}; the smallest that keeps it is {least.label}, {least.bytes:,}"
        yield Figure(f"{each.label}: bytes / smallest uniform", each.bytes / least.bytes, "", how, 1.0)


def _best_within(ours: Sequence[Entry], size: int) -> Entry | None:
    return min((each for each in ours if each.bytes <= size), key=lambda each: each.kl, default=None)
