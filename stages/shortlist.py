"""shortlist: the best trials that keep a device's budgets, to be recovered."""

from pipelines.workspace import Workspace
from stages.schema import DeviceProfile, ShortlistConfig
from stages.search_artifacts import Shortlist, Supernet, Trials
from stages.searching.selection import selected


def shortlist(
    trials: Trials,
    config: ShortlistConfig,
    device: DeviceProfile,
    work: Workspace,
    supernet: Supernet | None = None,
) -> Shortlist:
    """The config.candidates most accurate architectures within the device's budgets and the configured shares: of the
    trials, and of config.refine rounds beside the best of these.

    Raises StageError, with the nearest that there is, where none keeps them.
    """
    result = Shortlist(work.out)
    result.write_json("shortlist.json", {"candidates": selected(trials, config, device, work, supernet)})
    return result
