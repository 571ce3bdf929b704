"""The memory of the process that asks. Imports nothing: what is measured must not pay for it."""


def resident() -> dict[str, float]:
    """{"peak", "now"}: MiB resident, at most and now."""
    with open("/proc/self/status", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    return {name: int(lines[key].split()[0]) / 1024 for name, key in (("peak", "VmHWM"), ("now", "VmRSS"))}
