"""How a checkpoint's images become the encoder's input, as its processor files and its config.json say."""

from pathlib import Path
from typing import Any

from pipelines.errors import CheckpointError
from stages.models.description import read_object

RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
# CLIPImageProcessor's own values where preprocessor_config.json leaves a key out.
_CLIP: dict[str, Any] = {
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_pad": False,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
}
# What Apple's code gives that processor, whatever the size; nothing in its releases says so.
_APPLE: dict[str, Any] = {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}


def refuse_tiles(config: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError where config.json cuts images into tiles, or merges their features by place."""
    aspect, merge = config.get("image_aspect_ratio"), config.get("mm_patch_merge_type")
    for key, value, bad in (
        ("image_aspect_ratio", aspect, isinstance(aspect, str) and "anyres" in aspect),
        ("mm_patch_merge_type", merge, merge not in (None, "flat")),
    ):
        if bad:
            raise CheckpointError(
                f"{path}: {key} is {value!r}: images cut into a varying number of tiles (anyres) cannot be built",
                hint="On a device one image is one square of a fixed size: take a model trained so ('pad', or none).",
            )


def apple_pixels(config: dict[str, Any], size: int) -> dict[str, Any]:
    """As Apple's code does: a square padded with the mean if image_aspect_ratio is "pad", else cut from the middle."""
    aspect = "pad" if config.get("image_aspect_ratio") == "pad" else "crop"
    return _settings(size, aspect, {**_CLIP, **_APPLE})


def processor_pixels(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """As preprocessor_config.json says (or processor_config.json's image_processor). Raises CheckpointError for steps
    that preprocessing.json cannot say."""
    path = folder / "preprocessor_config.json"
    given = read_object(path) if path.is_file() else None
    if given is None and (folder / "processor_config.json").is_file():
        path = folder / "processor_config.json"
        given = read_object(path).get("image_processor")
    if not isinstance(given, dict):
        raise CheckpointError(
            f"{folder} does not say how images are prepared: preprocessor_config.json is missing",
            hint="Copy it from the model's source.",
        )
    values = {**_CLIP, **{key: value for key, value in given.items() if value is not None}}
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if not values[key]:
            raise _unknown(path, key, values[key], "true")
    if values["resample"] not in RESAMPLING:
        raise _unknown(path, "resample", values["resample"], "2 (bilinear) or 3 (bicubic)")
    if abs(values["rescale_factor"] * 255 - 1) > 1e-6:
        raise _unknown(path, "rescale_factor", values["rescale_factor"], "1/255")
    size, crop = _sized(values["size"]), _sized(values["crop_size"])
    if values["do_pad"] or config.get("image_aspect_ratio") == "pad":
        aspect, final = "pad", crop if values["do_center_crop"] else size
    elif values["do_center_crop"]:
        aspect, final = ("crop", crop) if "shortest_edge" in values["size"] else ("stretch", size)
    else:
        aspect, final = "stretch", size
        if "shortest_edge" in values["size"]:
            raise _unknown(path, "do_center_crop", False, "true: a device's images are square")
    if final is None or (aspect == "crop" and size != crop):
        raise _unknown(path, "size", values["size"], f"{{'shortest_edge': {crop}}}, as large as crop_size")
    return _settings(final, aspect, values)


def _settings(size: int, aspect: str, values: dict[str, Any]) -> dict[str, Any]:
    return {
        "image_size": size,
        "aspect": aspect,
        "resample": RESAMPLING[values["resample"]],
        "mean": values["image_mean"],
        "std": values["image_std"],
    }


def _sized(value: Any) -> int | None:
    """The side of a square: of 5, {"shortest_edge": 5} and {"height": 5, "width": 5}, 5; None of others."""
    if isinstance(value, dict):
        sides = {value[key] for key in ("shortest_edge", "height", "width") if key in value}
        value = sides.pop() if len(sides) == 1 else None
    return value if type(value) is int else None


def _unknown(path: Path, key: str, found: Any, expected: str) -> CheckpointError:
    return CheckpointError(f"{path}: {key} is {found!r}; expected {expected}", hint="No other way can be built.")
