"""Images of one's own are read as they are, one at a time; a subset of the lines is drawn by a seed."""

import gc
import pickle
import shutil
import subprocess
import sys
import unicodedata
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import StageError
from stages.data.held_out import examples_of
from stages.data.image import preprocess
from tests.own import LINE, TASKS, config_of, picture, refusal, save_images, without, write

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def folder(images: Path, tmp_path: Path) -> Path:
    """Images of all sorts; no questions yet."""
    shutil.copytree(images, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path / "own"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("images")
    save_images(parent)
    return parent


def test_examples_are_what_the_lines_say(folder: Path) -> None:
    write(
        folder,
        LINE,
        {"image": "more/b.jpg", "question": "read it", "answers": ["1.50", "1,50"], "task": "reading", "id": 7},
        {"image": "more/../link.png", "question": "?", "answer": "x", "task": "document", "id": "8"},
    )
    first, second, third = examples_of(config_of(folder))
    assert (first.answer, first.metric, first.task) == ("a star", "exact", "vqa")
    assert (second.answer, second.answers, second.metric) == ("1.50", ("1.50", "1,50"), "cer")
    assert first.image_id == third.image_id != second.image_id
    assert np.array_equal(first.image, np.asarray(picture())) and np.array_equal(third.image, first.image)
    again = pickle.loads(pickle.dumps(second))
    assert again == second and np.array_equal(again.image, second.image)


def saved(folder: Path, name: str) -> np.ndarray[Any, Any]:
    """The picture in a mode or an encoding; what it should be read as."""
    image, path, expected = picture(), folder / name, np.asarray(picture())
    match name:
        case "grey.png":
            image.convert("L").save(path)
            expected = np.asarray(image.convert("L").convert("RGB"))
        case "grey16.png":
            Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)
            expected = np.asarray(image.convert("L").convert("RGB"))
        case "grey16.tif":
            Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)
            expected = np.asarray(image.convert("L").convert("RGB"))
        case "palette.png":
            image.convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(path)
        case "alpha.png" | "alpha.webp":
            clear = image.convert("RGBA")
            clear.putalpha(0)
            clear.save(path, lossless=True)
            expected = np.full_like(expected, 255)
        case "cmyk.tif":
            image.convert("CMYK").save(path)
        case "turned.jpg":
            exif = Image.Exif()
            exif[0x0112] = 6
            image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=100, subsampling=0)
        case "two.mpo":
            image.save(path, save_all=True, append_images=[image], quality=100, subsampling=0)
        case "bits.png":
            image.convert("1").save(path)
            expected = np.asarray(image.convert("1").convert("RGB"))
        case _:
            options = {"quality": 100, "subsampling": 0} if name.endswith("jpg") else {"lossless": True}
            image.save(path, **options if not name.endswith(("bmp", "ppm", "gif", "tif")) else {})
    return expected


KINDS = ["grey.png", "grey16.png", "grey16.tif", "palette.png", "bits.png", "alpha.png", "alpha.webp", "cmyk.tif"]
KINDS += ["turned.jpg", "two.mpo", "plain.jpg", "plain.webp", "plain.bmp", "plain.ppm", "plain.tif", "plain.gif"]


@pytest.mark.parametrize("name", KINDS)
def test_images_of_all_kinds_are_read_as_rgb(name: str, folder: Path) -> None:
    expected = saved(folder, name)
    (example,) = examples_of(config_of(write(folder, without(image=name))))
    image = example.image
    assert image.dtype == np.uint8 and image.shape == (10, 20, 3)
    assert np.abs(image.astype(int) - expected).max() <= 6
    settings = {"image_size": 8, "mean": [0, 0, 0], "std": [1, 1, 1], "aspect": "pad"}
    assert np.array_equal(preprocess(image, settings), preprocess(example.picture, settings))


def test_an_image_that_changed_after_the_check_is_named_with_its_line(folder: Path) -> None:
    (_, example) = examples_of(config_of(write(folder, LINE, without(image="more/b.jpg"))))
    (folder / "more" / "b.jpg").write_bytes(b"")
    with pytest.raises(StageError, match=r"questions\.jsonl, line 2: .*b\.jpg cannot be read"):
        _ = example.image


def test_images_are_read_to_their_end_only_where_they_are_asked_about(folder: Path) -> None:
    write(folder, *[without(image=image, question=f"{n}?") for n, image in enumerate(["a.png", "cut.jpg"])])
    assert "line 2: image cut.jpg cannot be read" in refusal(folder)
    assert len(examples_of(config_of(folder), decode=False)) == 2
    seeds = [seed for seed in range(20) if _drawn_images(folder, seed) == ["a.png"]]
    assert 0 < len(seeds) < 20
    assert len(examples_of(config_of(folder, 1, seed=seeds[0]))) == 1


def _drawn_images(folder: Path, seed: int) -> list[str]:
    return [Path(str(each.picture)).name for each in examples_of(config_of(folder, 1, seed=seed), decode=False)]


def many(count: int) -> list[dict[str, Any]]:
    tasks = ["vqa", "text", "vqa", "reading"]
    return [without(question=f"{number}?", task=tasks[number % 4]) for number in range(count)]


def asked(folder: Path, per_task: int | None, seed: int = 1) -> list[str]:
    return [each.question for each in examples_of(config_of(folder, per_task, seed=seed))]


def test_a_subset_is_seeded_in_the_file_s_order_and_even_over_tasks(folder: Path) -> None:
    lines = many(200)
    write(folder, *lines)
    everything = [line["question"] for line in lines]
    assert asked(folder, None) == everything
    few = asked(folder, 10)
    assert few == asked(folder, 10) == [each for each in everything if each in few]
    assert few != asked(folder, 10, seed=2)
    assert set(few) < set(asked(folder, 11)) <= set(everything)
    drawn = examples_of(config_of(folder, 60, seed=1))
    assert Counter(each.task for each in drawn) == {"vqa": 60, "text": 50, "reading": 50}
    assert len(drawn.corpus) == 200 and drawn[3] in drawn[3:5]


def test_a_subset_does_not_depend_on_other_lines(folder: Path) -> None:
    """With a line more, at most that one is new; whatever the order, the same are drawn."""
    lines = many(100)
    before = set(asked(write(folder, *lines), 10))
    assert set(asked(write(folder, *reversed(lines)), 10)) == before
    new = without(question="new?")
    assert len(set(asked(write(folder, new, *lines), 10)) - before) <= 1


def test_each_line_is_drawn_about_as_often(folder: Path) -> None:
    write(folder, *[without(question=f"{number}?") for number in range(20)])
    drawn = Counter(question for seed in range(200) for question in asked(folder, 5, seed))
    assert len(drawn) == 20 and all(25 <= count <= 80 for count in drawn.values())  # 50 expected, deviation 6


@pytest.mark.slow
def test_no_decoded_image_is_kept(folder: Path) -> None:
    for number in range(8):
        picture(100, 100).save(folder / f"{number}.png")
    examples = examples_of(config_of(write(folder, *[without(image=f"{number}.png") for number in range(8)])))
    seen = []
    for example in examples:
        seen.append(weakref.ref(example.image))
        gc.collect()
        assert sum(each() is not None for each in seen) <= 1
    assert examples[0].image is not examples[0].image


def test_photos_take_no_more_memory_than_one(folder: Path) -> None:
    """In a process of its own: 12 of 36 MB each, checked and then looked at, cost less than 5 together."""
    for number in range(12):
        Image.new("RGB", (4000, 3000), (number, 20, 30)).save(folder / f"{number}.jpg")
    write(folder, *[without(image=f"{number}.jpg") for number in range(12)])
    script = f"""
import resource
from stages.data.held_out import examples_of
from stages.schema import QuestionsConfig
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
total = 0
for example in examples_of(QuestionsConfig({str(folder)!r}, None, 1, {TASKS!r})):
    total += example.image.shape[0]
assert total == 12 * 3000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 5 * 36_000, done.stdout


def test_unicode_forms_of_names_are_told_apart(folder: Path) -> None:
    name = unicodedata.normalize("NFD", "\u00e9.png")
    assert len(examples_of(config_of(write(folder, without(image=name))))) == 1
