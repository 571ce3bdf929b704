"""The peer onnxruntime-genai, in an environment of its own that sees the libraries installed here (torch, coremltools,
transformers in the same versions)."""

import subprocess
import sys
import sysconfig
from pathlib import Path

PACKAGES = ("onnxruntime-genai==0.18.0",)


def genai(peers: Path) -> Path:
    """Return the Python of the environment, made where it is not there yet. peers: the folder that it is kept in."""
    home = peers / "genai"
    python, ready = home / "bin" / "python", home / ".ready"
    here = sysconfig.get_path("purelib")
    wanted = "\n".join([*PACKAGES, here])
    if not ready.is_file() or ready.read_text(encoding="utf-8") != wanted:
        print(f"installing {', '.join(PACKAGES)} in {home}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES], check=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        (home / "lib" / version / "site-packages" / "tapeout.pth").write_text(f"{here}\n", encoding="utf-8")
        ready.write_text(wanted, encoding="utf-8")
    return python
