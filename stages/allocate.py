"""allocate: format and bits for each weight, under a budget, for one device, as an Allocation."""

from pipelines.workspace import Workspace
from stages.artifacts import Allocation, Calibration, Checkpoint, Sensitivity
from stages.quantizers.allocation import Search, bytes_allowed
from stages.quantizers.candidates import methods_of
from stages.quantizers.explanation import explained, summary
from stages.quantizers.frontier import frontier, plot, row, uniform
from stages.quantizers.offers import offers
from stages.quantizers.replaced import judges
from stages.quantizers.statistics import one_thread
from stages.quantizers.weights import Weights
from stages.schema import DeviceProfile, QuantizeConfig


def allocate(
    sensitivity: Sensitivity,
    checkpoint: Checkpoint,
    calibration: Calibration,
    config: QuantizeConfig,
    device: DeviceProfile,
    work: Workspace,
) -> Allocation:
    """The least divergence within the budget's bits and bytes; with budget.kl the fewest bytes that keep it.

    Raises StageError where the smallest candidates do not fit, or none keeps the divergence.
    """
    table = sensitivity.table()
    with one_thread():
        made = sensitivity.path if table["methods"] == methods_of(config) and table["measure"] == "kl" else None
        weights = Weights(checkpoint, calibration, config, made=made)
        search = Search(weights, offers(table, weights, config, device), judges(checkpoint, table), work)
        most = bytes_allowed(config.budget, weights.parameters)
        if config.budget.kl is None:
            chosen = search.within(search.largest if most is None else most)
        else:
            chosen = search.smallest_within(config.budget.kl, search.largest if most is None else most)
        points = frontier(search, chosen, weights.parameters, most)
    others, point = uniform(table, weights, device), row(chosen, weights.parameters)
    allocation = Allocation(work.out)
    allocation.write_json("allocation.json", {name: offer.choice.to_dict() for name, offer in chosen.chosen.items()})
    allocation.write_json("frontier.json", {"chosen": point, "points": points, "uniform": others})
    plot(allocation.path / "frontier.svg", device.title, point, points, others)
    (allocation.path / "allocation.md").write_text(
        explained(table, chosen, search.offers, point, others, config.budget, device), encoding="utf-8"
    )
    for line in summary(point, others):
        work.log(line)
    for name in ("bytes", "bits", "kl", "accuracy"):
        if point[name] is not None:
            work.metric(f"allocation.{name}", point[name])
    return allocation
