"""What ships: stages/devices/calibration.json, and beside the data what rows without published arithmetic need."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from .fitting import FORMS, fitted
from .folds import by_both, by_groups, intervals, prepared
from .imputing import Imputer
from .rows import (
    CPU_GFLOPS,
    LLM,
    LLM_COLUMNS,
    NPU_GOPS,
    PERF,
    PERF_COLUMNS,
    Table,
    chip_names,
    hardware,
    llm_table,
    perf_table,
    read,
)

IMPUTER = Path(__file__).with_name("imputer.json")


def all_tables() -> dict[str, Table]:
    """Every quantity's, from the data that the project keeps."""
    perf, llm = read(PERF), read(LLM)
    return {
        **{quantity: llm_table(llm, quantity) for quantity in LLM_COLUMNS},
        **{quantity: perf_table(perf, quantity) for quantity in PERF_COLUMNS},
    }


def calibrated() -> tuple[dict[str, Any], list[float]]:
    """calibration.json's values and the imputer's weights, fitted to all rows."""
    models, constants, weights = {}, {"cpu_gflops": CPU_GFLOPS, "npu_gops": NPU_GOPS}, list[float]()
    for quantity, table in all_tables().items():
        if quantity == "encode":
            weights = [float(f"{weight:.6g}") for weight in Imputer.fit(table).weights]
            constants |= shares_of_cpu(table)
        models[quantity] = of_quantity(table)
    return {"chips": chip_names(), "constants": constants, "models": models}, weights


def of_quantity(table: Table, *, spread: bool = True) -> dict[str, Any]:
    """One quantity's model; spread: with its intervals, which take most of the time."""
    values = fitted(prepared(table, [])[0], FORMS[table.quantity])
    if spread:
        every = np.arange(len(table))
        values["intervals"] = intervals(table, by_groups(table, table.relatives), every, chip_known=True)
        values["intervals"] |= intervals(table, by_both(table), every, chip_known=False)
    return values


def shares_of_cpu(table: Table) -> dict[str, float]:
    """encode_cpu_share: of the CPU's peak that towers in float32 attain, with the lowest and highest: rows are few, and
    their models are those that no Hexagon took."""
    shares = [
        table.features["gigaflops"][row] / table.measured[row] * 1e3 / hardware(levels["device"])["cpu_float32_gflops"]
        for row, levels in enumerate(table.situations)
        if levels["unit"] == "cpu" and levels["precision"] == "float" and table.known[row]
    ]
    low, middle, high = (float(f"{np.quantile(shares, quantile):.4g}") for quantile in (0.05, 0.5, 0.95))
    return {"encode_cpu_share": middle, "encode_cpu_share_low": low, "encode_cpu_share_high": high}


def written(calibration: Path) -> None:
    """Refit and write both files."""
    values, weights = calibrated()
    calibration.write_text(text_of(values), encoding="utf-8")
    IMPUTER.write_text(json.dumps(weights) + "\n", encoding="utf-8")


def text_of(values: dict[str, Any]) -> str:
    """JSON with a line for each short thing, keys in order."""
    return _lines(values, 0) + "\n"


def _lines(value: Any, depth: int) -> str:
    compact = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    if len(compact) <= 110 - depth or not isinstance(value, dict | list):
        return compact
    pad = " " * (depth + 1)
    if isinstance(value, list) and not any(isinstance(each, dict | list) for each in value):
        return compact
    if isinstance(value, list):
        return "[\n" + ",\n".join(pad + _lines(each, depth + 1) for each in value) + "\n" + " " * depth + "]"
    inner = (f"{pad}{json.dumps(key)}: {_lines(each, depth + 1)}" for key, each in sorted(value.items()))
    return "{\n" + ",\n".join(inner) + "\n" + " " * depth + "}"
