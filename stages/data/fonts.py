"""Fonts that come inside Python packages, so that every machine draws the same letters."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

# package, folder in it, files. A family is in one set only: the second is never drawn in training.
TRAINING = (
    (
        "matplotlib",
        "mpl-data/fonts/ttf",
        (
            "DejaVuSans",
            "DejaVuSans-Bold",
            "DejaVuSans-Oblique",
            "DejaVuSansMono",
            "DejaVuSansMono-Bold",
            "DejaVuSerif",
            "DejaVuSerif-Bold",
            "DejaVuSerif-Italic",
            "cmr10",
            "cmb10",
            "cmtt10",
        ),
    ),
    ("font_roboto", "files", ("Roboto-Regular", "Roboto-Medium", "Roboto-Bold", "Roboto-Italic", "Roboto-Black")),
    (
        "font_source_sans_pro",
        "files",
        ("SourceSansPro-Regular", "SourceSansPro-Semibold", "SourceSansPro-Bold", "SourceSansPro-It"),
    ),
    ("font_source_serif_pro", "files", ("SourceSerifPro-Regular", "SourceSerifPro-Bold", "SourceSerifPro-It")),
    ("font_caladea", "files", ("Caladea-Regular", "Caladea-Bold", "Caladea-Italic")),
    ("font_manrope", "files", ("Manrope-Medium", "Manrope-Bold")),
)
UNSEEN = (
    ("matplotlib", "mpl-data/fonts/ttf", ("STIXGeneral", "STIXGeneralBol")),
    ("font_hanken_grotesk", "files", ("HankenGrotesk-Regular", "HankenGrotesk-SemiBold", "HankenGrotesk-Italic")),
    ("font_fredoka_one", "files", ("FredokaOne-Regular",)),
)


def font_names(unseen: bool) -> list[tuple[str, str, str]]:
    """(package, folder, file stem) of the training fonts, or of those never seen in training."""
    return [(package, folder, name) for package, folder, names in (UNSEEN if unseen else TRAINING) for name in names]


@cache
def load_font(package: str, folder: str, name: str, size: int) -> ImageFont.FreeTypeFont:
    """The font at a size in pixels."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the package {package}, which holds the font {name}, is not installed")
    directory = Path(spec.origin).parent / folder
    path = next(path for suffix in ("ttf", "otf") if (path := directory / f"{name}.{suffix}").exists())
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
