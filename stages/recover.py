"""recover: a device's candidates, extracted, taught by the loaded model and ranked again; the best goes on."""

import shutil

from pipelines.workspace import Workspace
from stages.artifacts import Checkpoint
from stages.schema.search import RecoverConfig
from stages.search_artifacts import Shortlist, Supernet
from stages.searching.ranking import ranked, summary
from stages.searching.trials import Score

RECOVER = "stages.searching.recovery.recover_candidate"


def recover(
    checkpoint: Checkpoint, supernet: Supernet, shortlist: Shortlist, config: RecoverConfig, work: Workspace
) -> Checkpoint:
    """The most accurate of the candidates after config.training.steps steps, as an ordinary checkpoint; beside it
    ranking.json, with the scores of all before and after, and summary.txt."""
    candidates = shortlist.candidates()
    items = [{"architecture": each["architecture"]} for each in candidates]
    scores: dict[int, Score] = {}
    folders = {}
    for index, (found, folder) in work.map(RECOVER, items, folders=True, cpus=config.training.threads):
        scores[index], folders[index] = Score(**found), folder
    ranking = ranked(candidates, [scores[index] for index in range(len(items))])
    shutil.copytree(folders[ranking["chosen"]], work.out, dirs_exist_ok=True)
    result = Checkpoint(work.out)
    result.write_json("ranking.json", ranking)
    (work.out / "summary.txt").write_text("\n".join(summary(ranking)) + "\n", encoding="utf-8")
    chosen = ranking["candidates"][ranking["chosen"]]
    work.metric("recovered_accuracy", chosen["recovered"]["accuracy"])
    work.metric("supernet_accuracy", chosen["score"]["accuracy"])
    return result
