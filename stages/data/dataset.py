"""Questions of your own: a folder of images with questions.jsonl (see lines), checked whole before anything is asked.

All that is wrong is said at once, each with its line; no line is left out. Images lie in the folder or below it: PNG,
JPEG, WebP, TIFF, BMP, GIF or PPM, one picture a file. They are read as stages/data/image says: upright by EXIF,
transparency over white, 16 bits cut to 8, CMYK made RGB without its profile.
"""

import hashlib
import json
import struct
import unicodedata
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath

from PIL import Image, UnidentifiedImageError

from pipelines.errors import StageError, nearest
from stages.data.example import Example, Questions
from stages.data.lines import FILE, Contents, Line, Problem, read_lines
from stages.evaluation.text_metrics import Cider, words_of

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "I;16", "I;16B", "I;16L", "I;16N")
SIDE = 16_384  # pixels: padded to a square, it takes 1 GiB
SHAPE = 100  # times as long as wide: cut from a resized image, it takes as much
SHOWN = 20  # problems; of more, the number
# What Pillow's readers raise for damaged files, beside UnidentifiedImageError, an OSError.
DAMAGED = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, OverflowError, struct.error, zlib.error)


def read_dataset(
    folder: Path, tasks: Mapping[str, str], per_task: int | None, seed: int, *, decode: bool = True
) -> Questions:
    """The folder's lines as examples whose images are read when they are asked for.

    tasks: {name: metric}. per_task, seed: how many of each task are drawn, null: all. What is drawn depends on the
    lines' contents, not on their order: with a line added, the others are drawn as before. decode: see examples_of.
    Raises StageError.
    """
    contents = read_lines(_content(folder), tasks)
    places, problems = _found_images(folder, contents)
    problems += contents.problems
    sound = [line for line in contents.lines if line.image in places]
    examples = _examples(sound, places, tasks)
    asked = _drawn(sound, per_task, seed)
    if decode:
        problems += _unreadable([(sound[index], places[sound[index].image]) for index in asked])
    problems += _no_words(sound, tasks)
    if not problems:
        problems += _worthless(sound, tasks)
    if problems:
        raise _refusal(folder, problems, contents.count)
    return Questions([examples[index] for index in asked], examples)


def _content(folder: Path) -> bytes:
    try:
        return (folder / FILE).read_bytes()
    except OSError as cause:
        hint = f"Expected a folder of images with {FILE}."
        raise StageError(f"questions.path: {folder / FILE} cannot be read: {cause.strerror}", hint=hint) from cause


def _examples(lines: Sequence[Line], places: Mapping[str, Path], tasks: Mapping[str, str]) -> list[Example]:
    images = {path: number for number, path in enumerate(dict.fromkeys(places[line.image] for line in lines))}
    found = []
    for line in lines:
        path, where = places[line.image], f"{FILE}, line {line.number}"
        found.append(Example(path, line.question, line.answers, line.task, images[path], tasks[line.task], where))
    return found


def _drawn(lines: Sequence[Line], per_task: int | None, seed: int) -> list[int]:
    """Indices, in order: of each task those `per_task` whose digests with the seed are the least."""
    if per_task is None:
        return list(range(len(lines)))
    by_task: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for index, line in enumerate(lines):
        said = json.dumps([seed, line.task, line.image, line.question, line.answers], ensure_ascii=False)
        by_task[line.task].append((hashlib.sha256(said.encode()).hexdigest(), index))
    return sorted(index for each in by_task.values() for _, index in sorted(each)[:per_task])


def _found_images(folder: Path, contents: Contents) -> tuple[dict[str, Path], list[Problem]]:
    """{image as a line names it: its file} of those that can be opened, and what is wrong with the others."""
    root, places, problems = folder.resolve(), dict[str, Path](), list[Problem]()
    wrong: dict[str, str] = {}
    for number, name in contents.images:
        if name not in places and name not in wrong:
            path, problem = _place(root, name, hint=len(wrong) < SHOWN)
            problem = problem or _wrong_header(path)
            if problem:
                wrong[name] = problem
            else:
                places[name] = path
        if name in wrong:
            problems.append(Problem(number, f"image {name} {wrong[name]}"))
    return places, problems


def _place(root: Path, name: str, hint: bool) -> tuple[Path, str]:
    """Where the image lies, links followed, or why it cannot be taken. hint: whether to look for a like name."""
    try:
        if PurePath(name).is_absolute():
            return root, "is an absolute path; expected one from the folder"
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            return root, "lies outside the folder (by .. or by a link); expected a file in it"
        if path.is_dir():
            return root, "is a folder; expected a file"
        if not path.exists():
            return root, "is missing" + (f"; {like}" if hint and (like := _like(root / name)) else "")
        return path, "" if path.is_file() else "is no regular file; expected an image"
    except (OSError, RuntimeError, ValueError) as cause:  # a name too long, a circle of links, a zero byte
        return root, f"is no name of a file: {getattr(cause, 'strerror', None) or cause}"


def _like(path: Path) -> str:
    beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    same = [each for each in beside if unicodedata.normalize("NFC", each) == unicodedata.normalize("NFC", path.name)]
    if same:
        return "a file has this name in another Unicode form (NFC, NFD): rename it to what the line says"
    return nearest(path.name, beside)


def _wrong_header(path: Path) -> str:
    """Why an image is not taken, by its first bytes; "" where it is."""
    try:
        with _opened(path) as file:
            width, height = file.size
            if max(width, height) > SIDE:
                return f"is {width} x {height} pixels; expected {SIDE} at most each way"
            if max(width, height) > SHAPE * min(width, height):
                return f"is {width} x {height} pixels; expected at most {SHAPE} times as long as wide"
            if file.mode not in MODES and not (file.mode == "I" and file.format in ("PNG", "PPM")):
                return f"has pixels of mode {file.mode}; expected 8 or 16 bits a colour, RGB, CMYK, grey or a palette"
            frames = int(getattr(file, "n_frames", 1))
            if frames > 1 and file.format != "MPO":  # a phone's JPEG with a second picture, of depths or the like
                return f"holds {frames} pictures; expected one"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as cause:
        return f"has too many pixels: {cause}"
    except DAMAGED as cause:
        return _unreadable_by(cause, path)
    return ""


def _unreadable(asked: Sequence[tuple[Line, Path]]) -> Iterator[Problem]:
    """The problems of images that end too early or are damaged inside. One is held at a time, JPEG at an eighth."""
    wrong: dict[Path, str] = {}
    for line, path in asked:
        if path not in wrong:
            wrong[path] = ""
            try:
                with _opened(path) as file:
                    file.draft("", (max(file.width // 8, 1), max(file.height // 8, 1)))
                    file.load()
            except DAMAGED as cause:
                wrong[path] = _unreadable_by(cause, path)
        if wrong[path]:
            yield Problem(line.number, f"image {line.image} {wrong[path]}")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, which is not used
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as file:
            yield file


def _unreadable_by(cause: Exception, path: Path) -> str:
    said = "it is none of its kinds" if isinstance(cause, UnidentifiedImageError) else str(cause)
    return f"cannot be read: {said.replace(str(path), path.name)}; expected PNG, JPEG, WebP, TIFF, BMP, GIF or PPM"


def _no_words(lines: Sequence[Line], tasks: Mapping[str, str]) -> Iterator[Problem]:
    for line in lines:
        for answer in line.answers:
            if tasks[line.task] == "cider" and not words_of(answer):
                yield Problem(line.number, f"the answer {answer!r} has no word, and CIDEr compares words")


def _worthless(lines: Sequence[Line], tasks: Mapping[str, str]) -> Iterator[Problem]:
    """Captions that CIDEr gives 0 whatever is answered: all their words are in every image's captions."""
    for task in dict.fromkeys(line.task for line in lines if tasks[line.task] == "cider"):
        captions = [line for line in lines if line.task == task]
        cider = Cider([line.answers for line in captions])
        for line in captions:
            if not any(cider.score(answer, line.answers) for answer in line.answers):
                count = f"all {len(captions)} lines" if len(captions) > 1 else "the only line"
                yield Problem(
                    line.number,
                    f"CIDEr counts what sets a caption apart, and each word of this one is in {count} of task {task}; "
                    f"expected captions that differ, or questions.tasks.{task}=anls",
                )


def _refusal(folder: Path, problems: Sequence[Problem], lines: int) -> StageError:
    ordered = sorted(problems, key=lambda each: each.line)
    listed = "".join(f"\n    {problem}" for problem in ordered[:SHOWN])
    more = f"\n    and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    count = f"{len(ordered)} problem{'s' if len(ordered) > 1 else ''} in {lines} line{'s' if lines != 1 else ''}"
    return StageError(
        f"{folder / FILE}: {count}{listed}{more}",
        hint="Mend or remove these lines; none is left out by itself. stages/data/lines.py says how a line looks.",
    )
