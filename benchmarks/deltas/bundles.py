"""Releases to compare: the reference model and a fine-tune of it, built by this project itself."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import yaml
from convert.spent import REPOSITORY, spend
from engine.projects import under_git

DEVICES = ("pixel-8", "iphone-15-pro")
COPIED = ("conf", "stages", "pipelines", "artifacts/reference")
FEWER = ("tracking=none", "validate.advise=null", "questions.per_task=15")  # sizes do not ask for more
LOOSE = 0.3  # a gate's bound for what so few questions retain: its place in the manifest is what counts here


class Releases:
    """Builds under `home`, each made when it is asked for. steps: of the fine-tune."""

    def __init__(self, home: Path, steps: int) -> None:
        self._home, self._steps, self._root = home, steps, home / "project"
        for name in COPIED:
            shutil.rmtree(self._root / name, ignore_errors=True)
            shutil.copytree(REPOSITORY / name, self._root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "requirements.lock"):
            shutil.copy(REPOSITORY / name, self._root / name)
        if not (self._root / ".git").exists():
            under_git(self._root)

    def bundles(self, quantize: str, rate: float | None = None, *overrides: str) -> dict[str, Path]:
        """Build the reference model, or its fine-tune at that rate, and return each device's bundle.

        What did not change since the last run is in the project's own store.
        """
        words = [f"quantize={quantize}", f"device=[{','.join(DEVICES)}]", *FEWER, self.gates(), *overrides]
        if rate is not None:
            words.append(f"model.path={self.checkpoint(rate)}")
        tapeout = Path(sys.executable).with_name("tapeout")
        spent = spend([tapeout, "build", *words, "--json"], self._root, threads=2, PYTHONPATH=str(self._root))
        built = json.loads(spent.out)["bundles"]
        kept = self._home / "bundles" / hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
        shutil.rmtree(kept, ignore_errors=True)
        for device in DEVICES:
            shutil.copytree(self._root / built[device], kept / device)
        return {device: kept / device for device in DEVICES}

    def gates(self) -> str:
        """Return the default gates as an override, with the bound of retention loose."""
        gates = yaml.safe_load((self._root / "conf/validate/default.yaml").read_text(encoding="utf-8"))["gates"]
        gates[0]["min"] = LOOSE
        listed = ", ".join(
            "{" + ", ".join(f"{key}: {json.dumps(value)}" for key, value in gate.items()) + "}" for gate in gates
        )
        return f"validate.gates=[{listed}]".replace('"', "")

    def checkpoint(self, rate: float) -> Path:
        """Return the fine-tuned checkpoint; made where it is not there yet."""
        sources = (REPOSITORY / "artifacts/reference/model.safetensors", Path(__file__).with_name("fine_tune.py"))
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
        path = self._home / "checkpoints" / f"{digest}-{self._steps}-{rate:g}"
        if not (path / "model.safetensors").is_file():
            aside = path.with_name(f"{path.name}.partial")
            shutil.rmtree(aside, ignore_errors=True)
            words = [sys.executable, "-m", "deltas.fine_tune", REPOSITORY / "artifacts/reference", aside]
            spend([*words, str(self._steps), str(rate)], REPOSITORY)
            aside.rename(path)
        return path
