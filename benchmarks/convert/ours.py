"""Our way: load the checkpoint, round its weights to nearest, lower them, in one process, stage by stage.

Run as a script: python -m convert.ours coreml|onnx CHECKPOINT OUT CONTEXT. Prints a JSON object: seconds of each step.
The device model lies in OUT/model; what the stages before it wrote lies beside it.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from convert.spent import REPOSITORY
from pipelines.typed import check
from pipelines.workspace import Workspace

PRESET = "fastvlm-0.5b"  # what it ships with: conf/model holds how it is rounded and converted, on top of int4
DEVICES = {"coreml": "iphone-15-pro", "onnx": "pixel-8"}


def main(runtime: str, checkpoint: Path, out: Path, context: int) -> dict[str, Any]:
    clock, seconds = time.monotonic(), {}

    def lap(name: str) -> None:
        nonlocal clock
        seconds[name], clock = round(time.monotonic() - clock, 2), time.monotonic()

    from stages import convert, load, quantize, schema

    preset = yaml.safe_load((REPOSITORY / f"conf/model/{PRESET}.yaml").read_text(encoding="utf-8"))
    model = typed("model", "reference", schema.ModelConfig, {"path": str(checkpoint)})
    loaded = load.load(model, room(out, "loaded"))
    lap("load")
    rounding = typed("quantize", "int4", schema.QuantizeConfig, preset["quantize"])
    rounded = quantize.quantize(loaded, rounding, room(out, "rounded"))
    lap("quantize")
    conversion = typed("convert", "default", schema.ConvertConfig, preset["convert"] | {"context": context})
    device = typed("device", DEVICES[runtime], schema.DeviceProfile, {})
    convert.convert(rounded, conversion, device, room(out, "model"))
    lap("lower")
    return {"seconds": seconds}


def typed(group: str, name: str, schema: type, changes: dict[str, Any]) -> Any:
    """The configuration of conf/<group>/<name>.yaml with changes, as a stage gets it."""
    from omegaconf import OmegaConf

    path = REPOSITORY / "conf" / group / f"{name}.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8")) | changes
    checked = check(str(path), group, values, schema)
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), checked))


def room(out: Path, name: str) -> Workspace:
    for path in (out / name, out / f"{name}.scratch"):
        path.mkdir(parents=True)
    return Workspace(out / name, out / f"{name}.scratch")


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))))
