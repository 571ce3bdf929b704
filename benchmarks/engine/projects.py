"""The projects that are measured: empty stages in layers, and this repository's own pipeline for twelve devices."""

import shutil
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
WIDTH, FAN_IN = 20, 3  # stages a layer; inputs of each from the layer before
CONTEXTS, CHUNKS = (256, 288, 320), (64, 48)  # twelve profiles: two runtimes, three contexts, two chunks

CONFIG = """
defaults: [{{pipeline: main}}, {{device: [{devices}]}}, {{executor: local}}, {{tracking: none}}, _self_]
"""
DEVICE = "# @package device.{name}\nname: {name}\nmark: {number}\noverrides: {{}}\n"
STAGE = '''

def {name}({parameters}):
    """One small file, which no other stage writes."""
    (work.out / "value.txt").write_text(f"{name} {mark}")
'''


@dataclass(frozen=True)
class Project:
    """A project in `root`. nodes: how many its plan has."""

    root: Path
    nodes: int

    def forget(self) -> None:
        """Make it a project that was never built: what is left is what was committed, and compiled modules."""
        subprocess.run(["git", "clean", "-dfxq", "-e", "__pycache__"], cwd=self.root, check=True)

    def copy(self) -> "Project":
        """Return a copy that was never built.

        ext4 looks at each inode that was freed in the last minutes before it makes a new file: in a folder just
        emptied a build takes twice the time.
        """
        self.forget()
        root = self.root.with_name(f"{self.root.name}-{uuid.uuid4().hex}")
        shutil.copytree(self.root, root)
        return Project(root, self.nodes)


def layered(root: Path, stages: int, devices: int = 0) -> Project:
    """Write a pipeline of `stages` empty stages: layers of WIDTH, a module each, FAN_IN inputs from the layer before.

    With `devices`, every stage is one node for each of them.
    """
    spec: dict[str, dict[str, object]] = {}
    modules: dict[str, str] = {}
    for number in range(stages):
        layer, place = divmod(number, WIDTH)
        below = [f"s{(layer - 1) * WIDTH + (place + step) % WIDTH:04}" for step in range(FAN_IN)] if layer else []
        name, module = f"s{number:04}", f"layer{layer:03}"
        needs = {f"input{index}": need for index, need in enumerate(below)}
        parameters = ", ".join([*needs, *(["device"] if devices else []), "work"])
        text = STAGE.format(name=name, parameters=parameters, mark="{device.mark}" if devices else "")
        modules[module] = modules.get(module, '"""Empty stages."""\n') + text
        spec[name] = {"run": f"layers.{module}.{name}", "needs": needs}
        if devices:
            spec[name] |= {"per": "device", "device": True}
    names = [f"device{number:03}" for number in range(devices)]
    write(root / "pyproject.toml", "[project]\nname = 'layers'\n")
    write(root / "conf/config.yaml", CONFIG.format(devices=", ".join(names)))
    write(root / "conf/pipeline/main.yaml", yaml.safe_dump({"stages": spec}, sort_keys=False))
    write(root / "conf/executor/local.yaml", (REPOSITORY / "conf/executor/local.yaml").read_text(encoding="utf-8"))
    write(root / "conf/tracking/none.yaml", (REPOSITORY / "conf/tracking/none.yaml").read_text(encoding="utf-8"))
    (root / "conf/device").mkdir()
    for number, name in enumerate(names):
        write(root / f"conf/device/{name}.yaml", DEVICE.format(name=name, number=number))
    write(root / "layers/__init__.py", "")
    for module, text in modules.items():
        write(root / f"layers/{module}.py", text)
    under_git(root)
    return Project(root, stages * max(devices, 1))


def twelve(root: Path, per_task: int) -> Project:
    """Copy this project's mobile pipeline for twelve devices, of which no two share a convert, validate or package.

    The stages before convert are one for all, as for any devices with the same weights. per_task: questions of each
    task; so few hold no gate, so there is none.
    """
    for name in ("conf", "stages", "pipelines", "artifacts/reference"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(REPOSITORY / name, root / name)
    shutil.rmtree(root / "conf/device")
    names = []
    for base in ("iphone-15-pro", "pixel-8"):
        profile = yaml.safe_load((REPOSITORY / f"conf/device/{base}.yaml").read_text(encoding="utf-8"))
        for context in CONTEXTS:
            for chunk in CHUNKS:
                name = f"{base}-{context}-{chunk}"
                changed = {**profile, "name": name, "title": name, "context": context, "prefill_chunk": chunk}
                write(root / f"conf/device/{name}.yaml", f"# @package device.{name}\n{yaml.safe_dump(changed)}")
                names.append(name)
    config = yaml.safe_load((root / "conf/config.yaml").read_text(encoding="utf-8"))
    for entry in config["defaults"]:
        if isinstance(entry, dict):
            entry |= {group: choice for group, choice in (("device", names), ("tracking", "none")) if group in entry}
    write(root / "conf/config.yaml", yaml.safe_dump(config))
    for name, changes in (("questions", {"per_task": per_task}), ("validate", {"gates": []})):
        path = root / f"conf/{name}/default.yaml"
        write(path, yaml.safe_dump({**yaml.safe_load(path.read_text(encoding="utf-8")), **changes}))
    under_git(root)
    return Project(root, 4 + 3 * len(names))


def under_git(root: Path) -> None:
    """Make the project a git and DVC repository, set up as this one is."""
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "artifacts/.gitignore"):
        write(root / name, (REPOSITORY / name).read_text(encoding="utf-8"))
    who = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@example.org"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "A project to measure"]):
        subprocess.run(["git", *words], cwd=root, check=True, capture_output=True)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
