"""Questions about a scene, one a task, with the one right answer."""

import random
from collections import Counter
from dataclasses import dataclass

from stages.data.scenes import COLORS, SHAPES, SIZE, Scene, Shape

NUMBERS = ("zero", "one", "two", "three", "four", "five")


@dataclass(frozen=True)
class Question:
    task: str
    text: str
    answer: str


def ask(rng: random.Random, scene: Scene) -> list[Question]:
    """Every question that this scene can answer, at most one a task."""
    makers = (_ocr, _color, _shape, _count, _existence, _position, _caption, _digit)
    return [question for maker in makers if (question := maker(rng, scene)) is not None]


def ask_place(rng: random.Random, scene: Scene) -> list[Question]:
    """Where one thing is, seen from the middle of the image; no question where neither axis leads clearly. Asked in
    training only."""
    middle = Shape("", "", SIZE / 2, SIZE / 2, 0)
    single = _unique([f"{shape.color} {shape.name}" for shape in scene.shapes])
    things = [shape for shape in scene.shapes if f"{shape.color} {shape.name}" in single and _direction(shape, middle)]
    if not things:
        return []
    thing = rng.choice(things)
    return [Question("place", f"where is the {thing.color} {thing.name}?", _direction(thing, middle))]


def plural(shape: str) -> str:
    return "crosses" if shape == "cross" else shape + "s"


def corpus() -> list[str]:
    """Every sentence that questions and answers are made of, for training a tokenizer; words to read left out."""
    things = [noun_phrase(color, shape) for color in COLORS for shape in SHAPES]
    lines = ["read the word", "describe the image", "which digit is written?", "yes", "no", *COLORS, *SHAPES, *NUMBERS]
    lines += [f"what color is the {shape}?" for shape in SHAPES] + [f"what shape is {color}?" for color in COLORS]
    lines += [f"how many {plural(shape)} are there?" for shape in SHAPES]
    lines += [f"is there {thing}?" for thing in things]
    names = [thing.split(maxsplit=1)[1] for thing in things]
    lines += [f"where is the {name} relative to the {name}?" for name in names]
    lines += [f"{thing}, {thing}" for thing in things] + ["left", "right", "above", "below"]
    return lines


def noun_phrase(color: str, shape: str) -> str:
    return f"{'an' if color == 'orange' else 'a'} {color} {shape}"


def facts(caption: str) -> Counter[str]:
    """The facts of a caption: its noun phrases, "a red star", counted."""
    return Counter(phrase.strip() for phrase in caption.split(",") if phrase.strip())


def _ocr(rng: random.Random, scene: Scene) -> Question | None:
    return Question("ocr", "read the word", scene.word) if scene.word else None


def _digit(rng: random.Random, scene: Scene) -> Question | None:
    return Question("digit", "which digit is written?", str(scene.digit[0])) if scene.digit else None


def _color(rng: random.Random, scene: Scene) -> Question | None:
    single = _unique([shape.name for shape in scene.shapes])
    if not single:
        return None
    name = rng.choice(single)
    answer = next(shape.color for shape in scene.shapes if shape.name == name)
    return Question("color", f"what color is the {name}?", answer)


def _shape(rng: random.Random, scene: Scene) -> Question | None:
    single = _unique([shape.color for shape in scene.shapes])
    if not single:
        return None
    color = rng.choice(single)
    answer = next(shape.name for shape in scene.shapes if shape.color == color)
    return Question("shape", f"what shape is {color}?", answer)


def _count(rng: random.Random, scene: Scene) -> Question | None:
    if not scene.shapes:
        return None
    name = rng.choice(SHAPES) if rng.random() < 0.25 else rng.choice(scene.shapes).name
    number = sum(shape.name == name for shape in scene.shapes)
    return Question("count", f"how many {plural(name)} are there?", NUMBERS[number])


def _existence(rng: random.Random, scene: Scene) -> Question | None:
    """Half of the questions ask for what is there; the others mix a colour and a shape of the image, or any two."""
    if not scene.shapes:
        return None
    present = {(shape.color, shape.name) for shape in scene.shapes}
    color, name = rng.choice(sorted(present))
    if rng.random() < 0.5:
        colors = sorted({shape.color for shape in scene.shapes}) if rng.random() < 0.6 else list(COLORS)
        names = sorted({shape.name for shape in scene.shapes}) if rng.random() < 0.6 else list(SHAPES)
        absent = [(c, n) for c in colors for n in names if (c, n) not in present]
        color, name = rng.choice(absent or [(c, n) for c in COLORS for n in SHAPES if (c, n) not in present])
    return Question("existence", f"is there {noun_phrase(color, name)}?", "yes" if (color, name) in present else "no")


def _position(rng: random.Random, scene: Scene) -> Question | None:
    """Where one thing is relative to another, along the axis on which they are clearly further apart."""
    single = _unique([f"{shape.color} {shape.name}" for shape in scene.shapes])
    things = [shape for shape in scene.shapes if f"{shape.color} {shape.name}" in single]
    pairs = [(a, b) for a in things for b in things if a is not b and _direction(a, b)]
    if not pairs:
        return None
    first, second = rng.choice(pairs)
    text = f"where is the {first.color} {first.name} relative to the {second.color} {second.name}?"
    return Question("position", text, _direction(first, second))


def _direction(first: Shape, second: Shape) -> str:
    """left, right, above or below; empty where neither axis leads by a factor of 1.5."""
    across, down = first.x - second.x, first.y - second.y
    if abs(across) > 1.5 * abs(down):
        return "left" if across < 0 else "right"
    if abs(down) > 1.5 * abs(across):
        return "above" if down < 0 else "below"
    return ""


def _caption(rng: random.Random, scene: Scene) -> Question | None:
    """The shapes from left to right, where there are at most three."""
    if not 1 <= len(scene.shapes) <= 3:
        return None
    ordered = sorted(scene.shapes, key=lambda shape: shape.x)
    return Question(
        "caption", "describe the image", ", ".join(noun_phrase(shape.color, shape.name) for shape in ordered)
    )


def _unique(values: list[str]) -> list[str]:
    return [value for value, count in Counter(values).items() if count == 1]
