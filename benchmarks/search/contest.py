"""What was searched against uniform designs within the same bounds, all recovered alike, on held-out questions."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from engine.figures import Figure

from search.bench import Bench, Recovered
from search.tables import columns, percent, share
from search.uniform import DESIGNS, Design, largest
from stages.artifacts import Checkpoint
from stages.evaluation.bootstrap import Retention
from stages.schema.search import LatencySource
from stages.searching.ranking import ranked
from stages.searching.studies import mark
from stages.searching.trials import Cost, Trial
from stages.searching.words import described

SEARCHED, OTHER, FULL = "searched", "searched, not chosen", "full model"


@dataclass(frozen=True)
class Contest:
    """parameters, bytes, latency: at most such shares of the full model's, the last two on DEVICE; kept: the target, a
    share of the full model's overall accuracy."""

    name: str
    kept: float
    parameters: float = 1.0
    bytes: float = 1.0
    latency: float = 1.0

    def fits(self, cost: Cost, full: Cost) -> bool:
        small = cost.parameters <= self.parameters * full.parameters
        return small and cost.byte_share <= self.bytes and cost.latency_share <= self.latency


CONTESTS = {"half": Contest("half", 0.95, parameters=0.5), "seventy": Contest("seventy", 0.98, bytes=0.7, latency=0.7)}


@dataclass(frozen=True)
class Row:
    """weights: what it was cut from, the trained supernet or the sorted model. size: the uniform design's share.
    before: right on the supernet; alike: recovered, on as many questions of the training's kind; overall: on held-out
    questions. kept: of the full model's overall. lead: what was searched as a share of this one's. host: the latency
    that was measured here, as a share. missing: why there are no figures."""

    label: str
    weights: str = ""
    architecture: dict[str, int] | None = None
    size: float | None = None
    parameters: float | None = None
    bytes: float | None = None
    latency: float | None = None
    host: float | None = None
    before: float | None = None
    alike: float | None = None
    overall: float | None = None
    kept: Retention | None = None
    lead: Retention | None = None
    missing: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def contest(bench: Bench, bounds: Contest) -> list[Row]:
    """Uniform designs come first: they need no search, and can be made while another process searches."""
    made: dict[str, Checkpoint] = {}
    uniform = [_uniform(bench, bounds, design, trained, made) for trained in _cut(bench) for design in DESIGNS]
    searched = _searched(bench, bounds, made)
    rows = [_full(bench), *searched, *uniform]
    chosen = made.get(_key(searched[0]))
    if chosen is not None:
        leads = {id(row): bench.kept(chosen, made[_key(row)]) for row in uniform if _key(row) in made}
        rows = [replace(row, lead=leads.get(id(row))) for row in rows]
    if bounds.latency < 1:
        shown = [row for row in rows if row.architecture is not None]
        shares = dict(zip(map(id, shown), bench.measured([dict(row.architecture or {}) for row in shown]), strict=True))
        rows = [replace(row, host=shares.get(id(row))) for row in rows]
    return rows


def _cut(bench: Bench) -> list[bool]:
    """Whether from the trained supernet, or from the sorted model."""
    return [which == "supernet" for which in bench.settings.cut_from]


def _full(bench: Bench) -> Row:
    largest, overall = bench.supernet(True).space().largest, bench.answered(bench.reference)
    return Row(FULL, "", largest, None, 1.0, 1.0, 1.0, None, None, None, overall)


def _uniform(bench: Bench, bounds: Contest, design: Design, trained: bool, made: dict[str, Checkpoint]) -> Row:
    costs, weights = bench.costs(LatencySource.predicted), "supernet" if trained else "sorted"
    found = largest(
        design,
        bench.reference.config(),
        bench.configs.supernet.space,
        costs.of,
        lambda cost: bounds.fits(cost, costs.full),
    )
    if found is None:
        return Row(design.label, weights, missing="even its smallest is too large")
    size, architecture = found
    row = _priced(Row(design.label, weights, architecture, size), costs.of(architecture), costs.full)
    return _recovered(bench, row, bench.recovered(trained, architecture), made)


def _searched(bench: Bench, bounds: Contest, made: dict[str, Checkpoint]) -> list[Row]:
    """The best candidates by the supernet's accuracy, recovered and ranked again as the recover stage does; the chosen
    one first."""
    costs = bench.costs(LatencySource.predicted)
    candidates = _candidates(bench, bounds)
    if not candidates:
        return [Row(SEARCHED, "supernet", missing="no trial is within the bounds")]
    found = [bench.recovered(True, each["architecture"]) for each in candidates]
    place = ranked(candidates, [each.score for each in found])["chosen"]
    rows = []
    for number, (candidate, recovered) in enumerate(zip(candidates, found, strict=True)):
        architecture, before = dict(candidate["architecture"]), candidate["score"]["accuracy"]
        row = Row(SEARCHED if number == place else OTHER, "supernet", architecture, before=before)
        rows.append(_recovered(bench, _priced(row, costs.of(architecture), costs.full), recovered, made))
    return sorted(rows, key=lambda row: row.label != SEARCHED)


def _candidates(bench: Bench, bounds: Contest) -> list[dict[str, Any]]:
    """As the shortlist stage chooses, refinement and all; bounds.fits says what may be listed."""
    costs, fitting = bench.costs(LatencySource.predicted), dict[str, Trial]()
    for trial in bench.trials("nsga2").trials():
        if trial.score.whole and bounds.fits(costs.of(trial.architecture), costs.full):
            fitting.setdefault(mark(trial.architecture), trial)
    return bench.listed(fitting, lambda cost: bounds.fits(cost, costs.full), repr(bounds)) if fitting else []


def _priced(row: Row, cost: Cost, full: Cost) -> Row:
    parameters = cost.parameters / full.parameters
    return replace(row, parameters=parameters, bytes=cost.byte_share, latency=cost.latency_share)


def _recovered(bench: Bench, row: Row, found: Recovered, made: dict[str, Checkpoint]) -> Row:
    made[_key(row)] = found.checkpoint
    overall, kept = bench.answered(found.checkpoint), bench.kept(found.checkpoint, bench.reference)
    return replace(row, alike=found.score.accuracy, overall=overall, kept=kept)


def _key(row: Row) -> str:
    return f"{row.label}, {row.weights}, {mark(row.architecture or {})}"


HEADS = (
    *("what", "cut from", "share", "parameters", "bytes", "latency", "on host", "on the supernet", "recovered"),
    *("held out", "of the full", "interval", "searched / it", ""),
)


def table(rows: Sequence[Row]) -> str:
    """share: of a uniform design's dimensions. latency: predicted. recovered: on questions like the training's."""
    lines: list[Sequence[str]] = [HEADS]
    for row in rows:
        sizes = [share(value) for value in (row.size, row.parameters, row.bytes, row.latency, row.host)]
        right = [percent(value) for value in (row.before, row.alike, row.overall)]
        kept = [percent(row.kept.value), _interval(row.kept)] if row.kept else ["", ""]
        lead = f"{row.lead.value:.3f} {_interval(row.lead)}" if row.lead else ""
        end = row.missing or described(row.architecture or {})
        lines.append((row.label, row.weights, *sizes, *right, *kept, lead, end))
    return columns(lines)


def _interval(found: Retention) -> str:
    return f"[{found.low:.3f}, {found.high:.3f}]"


def figures(bounds: Contest, rows: Sequence[Row]) -> list[Figure]:
    """What could not be made gives none."""
    best = next(row for row in rows if row.label == SEARCHED)
    if best.kept is None:
        return [Figure(f"{bounds.name}: accuracy kept", 0.0, "%", best.missing, 100 * bounds.kept, False)]
    low, high = 100 * best.kept.low, 100 * best.kept.high
    how = f"interval {low:.1f} to {high:.1f} %; {share(best.parameters)} x parameters, {share(best.bytes)} x bytes"
    if best.latency is not None:
        how += f", {share(best.latency)} x latency"
    found = [Figure(f"{bounds.name}: accuracy kept", 100 * best.kept.value, "%", how, 100 * bounds.kept, False)]
    for row in rows:
        if row.lead is not None:
            said = f"interval {row.lead.low:.3f} to {row.lead.high:.3f}"
            found.append(
                Figure(f"  {bounds.name}: searched / {row.label}, {row.weights}", row.lead.value, "", said, 1.0, False)
            )
    return found
