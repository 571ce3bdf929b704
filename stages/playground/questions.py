"""Questions to click through, with the answers that are expected: the last build's, your own, or procedural ones."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

import stages
from pipelines.errors import ConfigError, StageError
from pipelines.project import Project
from stages.data.asked import IMAGES, LINES, read_asked
from stages.data.dataset import read_dataset
from stages.data.example import Example, Questions
from stages.data.lines import FILE
from stages.data.source import question_source

MOST = 60
SEED = 23
ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class Offered:
    """original: what the checkpoint answered in the last build, if that is known. changed: whether a device's files
    scored otherwise then."""

    example: Example
    original: str | None = None
    changed: bool = False


@dataclass(frozen=True)
class Selection:
    """source: in words, where the questions come from."""

    source: str
    offered: list[Offered]


def select(project: Project, own: Path | None) -> Selection:
    """Choose about MOST questions, as many of each task. Raises ConfigError and StageError."""
    if own is not None:
        return Selection("your own questions", evenly([Offered(each) for each in own_questions(project, own)]))
    if (built := last_build(project)) is not None:
        return Selection("the validation set of the last build", evenly(built))
    drawn = question_source().by_task(-(-MOST // 9), SEED)
    return Selection("the procedural validation set", evenly([Offered(each) for each in drawn]))


def own_questions(project: Project, folder: Path) -> Questions:
    """Read a folder of images with questions.jsonl, as `questions.path` takes it; tasks are conf/questions' own."""
    from omegaconf import OmegaConf

    if not (folder / FILE).is_file():
        raise ConfigError(f"--questions {folder}: no {FILE} in it", hint="README, 'Validation', says how it looks")
    conf = project.conf if (project.conf / "questions").is_dir() else Path(stages.__file__).parents[1] / "conf"
    tasks: Any = OmegaConf.to_container(OmegaConf.load(conf / "questions" / "default.yaml"))
    return read_dataset(folder, tasks["tasks"], None, SEED)


def last_build(project: Project) -> list[Offered] | None:
    """Return what the last build asked, or None where it asked nothing. Raises StageError for damaged files."""
    build = project.artifacts / "build"
    baseline = build / "baseline"
    if not all((baseline / name).is_file() for name in (LINES, IMAGES, ANSWERS)):
        return None
    try:
        questions = read_asked(baseline)
        original = answers_of(baseline)
        others = [answers_of(path.parent) for path in sorted(build.glob(f"evaluate-*/{ANSWERS}"))]
        if len(original) != len(questions):
            return None  # a question set and answers of two builds
        alike = [
            each for each in others if [line["question"] for line in each] == [line["question"] for line in original]
        ]
        return [
            Offered(
                example,
                str(original[place]["answer"]),
                any(each[place]["score"] != original[place]["score"] for each in alike),
            )
            for place, example in enumerate(questions)
        ]
    except KeyError:
        return None  # an older version of Tapeout wrote them, in another form
    except (OSError, ValueError, TypeError) as cause:
        raise StageError(
            f"{baseline}: the questions of the last build cannot be read: {cause}",
            hint="build again, or name your own: --questions DIR",
        ) from cause


def answers_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / ANSWERS).read_text(encoding="utf-8").splitlines()]


def evenly(offered: Sequence[Offered]) -> list[Offered]:
    """Return at most MOST, as many of each task as there can be, in order; of a task, up to a third of those whose
    answer changed come before the rest."""
    tasks: dict[str, list[Offered]] = {}
    for each in offered:
        tasks.setdefault(each.example.task, []).append(each)
    share = max(1, MOST // max(1, len(tasks)))
    chosen = []
    for several in tasks.values():
        changed = [each for each in several if each.changed][: -(-share // 3)]
        rest = [each for each in several if not any(each is other for other in changed)]
        kept = {id(each) for each in (changed + rest)[:share]}
        chosen += [each for each in several if id(each) in kept]
    return chosen[:MOST]


def write_questions(site: Path, selection: Selection) -> None:
    """Write questions.json and questions/N.png, each image once."""
    (site / "questions").mkdir()
    places: dict[int, str] = {}
    lines = []
    for offered in selection.offered:
        example = offered.example
        if example.image_id not in places:
            places[example.image_id] = f"questions/{len(places)}.png"
            (site / places[example.image_id]).write_bytes(png(example))
        lines.append(
            {
                "task": example.task,
                "question": example.question,
                "answers": list(example.answers),
                "metric": example.metric,
                "image": places[example.image_id],
                "original": offered.original,
                "changed": offered.changed,
            }
        )
    document = {"source": selection.source, "questions": lines}
    (site / "questions.json").write_text(json.dumps(document, ensure_ascii=False, indent=1), encoding="utf-8")


def png(example: Example) -> bytes:
    """The image as a PNG, upright and opaque: what the encoder is given is the same as in the build."""
    file = io.BytesIO()
    Image.fromarray(example.image).save(file, "PNG")
    return file.getvalue()
