"""search: architectures proposed, scored on the supernet and priced for every device; and whether that beat chance."""

from pipelines.errors import StageError
from pipelines.workspace import Workspace
from stages.schema import DeviceProfile, SearchConfig
from stages.schema.search import Sampler
from stages.search_artifacts import Supernet, Trials
from stages.searching.costs import Costs
from stages.searching.exploring import Explorer
from stages.searching.pruning import pruned
from stages.searching.report import conclude
from stages.searching.storage import opened
from stages.searching.studies import Study, fingerprint, sha256_of


def search(supernet: Supernet, config: SearchConfig, devices: dict[str, DeviceProfile], work: Workspace) -> Trials:
    """Every trial of every seed, and of a random search of as many beside each; the frontier of them all.

    The same trials, whatever the number of workers, and wherever the search was killed in between. Raises StageError
    where the storage does not answer, ConfigError for a device whose latency cannot be predicted.
    """
    space = supernet.space()
    costs = Costs(space, config, devices, (supernet.path / "tokenizer.json").stat().st_size)
    if config.sampler is Sampler.prune:
        trials = pruned(space, costs, work)
    else:
        speeds = {name: [str(each.runtime), str(each.hardware)] for name, each in devices.items()}
        digests = [sha256_of(supernet.path / name) for name in ("supernet.safetensors", "space.json", "config.json")]
        mark = fingerprint(digests, config, speeds)
        storage = opened(config.storage, work.scratch)
        samplers = dict.fromkeys([config.sampler, Sampler.random])
        studies = [
            Study(storage, f"{config.storage.name}-{by.value}-{seed}-{mark}", by, seed, space, config)
            for seed in config.seeds
            for by in samplers
        ]
        explorer = Explorer(studies, costs, config.prune, len(studies) * config.trials, work)
        trials = [trial for found in explorer.run() for trial in found]
    if not trials:
        raise StageError("search: nothing was tried", hint="expected search.trials and search.seeds of one or more")
    return conclude(trials, costs, config, devices, work)
