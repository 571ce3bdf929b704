"""Does a bundle work on this machine? It answers its manifest's questions, as the app will ask, before it is used.

The files run in a process of their own, with a time limit: a model that hangs or crashes takes nothing with it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import LoweringError, StageError, TapeoutError, UpdateError
from stages.release.manifest import NAME, Manifest, object_of

if TYPE_CHECKING:
    from stages.artifacts import DeviceModel
    from stages.runtimes.session import LanguageSession

SECONDS = 120.0
FROM_OUTSIDE = (-signal.SIGTERM, -9)  # exit statuses; 9: SIGKILL, which a system short of memory sends
SelfTest = Callable[[Path], str]


def self_test(folder: Path, seconds: float = SECONDS) -> str:
    """Test the bundle in a folder. Return "" where it works, or why this machine cannot tell.

    Raises StageError where it does not work; UpdateError where the test was stopped from outside.
    """
    words = [sys.executable, "-P", "-m", __name__, str(folder.resolve())]  # -P: the current folder has no say in it
    process = subprocess.Popen(
        words, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        result, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as cause:
        raise StageError(f"it gave no answer in {seconds:g} s") from cause
    finally:
        process.kill()
        process.wait()
    status = process.returncode
    if status in FROM_OUTSIDE:
        raise UpdateError(
            f"{folder}: its self-test was stopped by signal {-status}",
            hint="signal 9 is what a system short of memory sends; what is in place stays, run it again",
        )
    if status:
        raise StageError(
            f"the process that ran it ended with {f'signal {-status}' if status < 0 else f'exit status {status}'}"
        )
    said: dict[str, str] = json.loads(result)
    if "error" in said:
        raise StageError(said["error"])
    return said["note"]


def environment() -> dict[str, str]:
    import stages

    root = str(Path(stages.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path}


def main(folder: Path) -> None:
    """Test in this process; print {"note"} or {"error"}, and nothing else, whatever a runtime prints."""
    out = os.dup(1)
    os.dup2(2, 1)
    try:
        said = {"note": tested(folder)}
    except (ImportError, LoweringError) as cause:  # a runtime that is not installed; files for another processor
        said = {"note": f"not tested here: {cause.message if isinstance(cause, LoweringError) else cause}"}
    except TapeoutError as error:
        said = {"error": error.message}
    except Exception as cause:  # files may make a runtime fail in any way
        said = {"error": f"{type(cause).__name__}: {' '.join(str(cause).split())[:500]}"}
    os.write(out, json.dumps(said).encode())


def tested(folder: Path) -> str:
    """Ask the bundle's questions; where it has none, open its files. Raises StageError for a wrong answer."""
    from stages.runtimes.opening import open_graph, open_session

    data = (folder / NAME).read_bytes()
    manifest = Manifest(data, object_of(data, NAME))  # it was held against its schema before
    model = described(folder, manifest.value["model"])
    if "decoder" not in manifest.value["model"]["files"]:
        open_graph(model)
        return ""
    session, questions = open_session(model), manifest.value["self_test"]
    for question in questions:
        answer = answered(folder, manifest, session, question)
        if answer != question["answer"]:
            raise StageError(
                f"asked {question['question']!r} it answers {answer!r}; {question['answer']!r} was expected"
            )
    if not questions:
        import numpy as np

        from stages.runtimes.generate import generate

        blank = np.zeros((0, int(session.description["hidden"])), np.float32)
        generate(session, [0], blank, end_id=-1, max_new_tokens=1)
        return "the bundle has no questions for a self-test: its decoder was run, and that is all"
    return ""


def described(folder: Path, description: dict[str, Any]) -> DeviceModel:
    """Return the model in a bundle's folder, as its manifest describes it."""
    from stages.artifacts import DeviceModel

    class Described(DeviceModel):
        def description(self) -> dict[str, Any]:
            return dict(description)

    return Described(folder)


def answered(folder: Path, manifest: Manifest, session: LanguageSession, question: dict[str, Any]) -> str:
    """Return the bundle's own answer, greedily chosen."""
    import numpy as np

    from stages.data.image import preprocess
    from stages.data.prompt import PromptFormat
    from stages.runtimes.generate import generate

    description = session.description
    tower = "encoder" in manifest.value["model"]["files"] and question["image"] is not None
    image = (int(description["image_token_id"]), int(description["image_tokens"])) if tower else (None, 0)
    prompts = PromptFormat.open(folder, *image)
    features = np.zeros((0, int(description["hidden"])), np.float32)
    if tower:
        settings = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
        features = session.encode(preprocess(folder / question["image"], settings))
    ids = generate(
        session,
        prompts.encode(question["question"]),
        features,
        end_id=prompts.end_id,
        max_new_tokens=prompts.max_new_tokens,
    )
    return prompts.decode(ids)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
