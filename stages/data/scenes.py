"""Procedural images: a word, coloured shapes and a handwritten digit over clutter, with what is true of them.

A scene is a pure function of its random generator. Everything is drawn with Pillow.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from stages.data.digits import handwritten
from stages.data.fonts import font_names, load_font
from stages.data.words import draw_word

SIZE = 96
COLORS = {
    "red": (215, 40, 40),
    "green": (45, 165, 65),
    "blue": (45, 80, 215),
    "yellow": (238, 214, 45),
    "purple": (135, 55, 175),
    "orange": (245, 140, 35),
    "cyan": (55, 200, 215),
    "pink": (250, 140, 190),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
Color = tuple[int, int, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Shape:
    name: str
    color: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """pixels: (96, 96, 3) uint8. letters: each letter of the word with its centre. digit: value, x, y."""

    pixels: NDArray[np.uint8]
    word: str | None
    letters: list[tuple[str, float, float]]
    shapes: list[Shape]
    digit: tuple[int, float, float] | None


def draw_scene(rng: random.Random, *, held_out: bool, unseen_fonts: bool = False, kind: str = "any") -> Scene:
    """A random scene. held_out: words and digits from the test split. kind: "any", or "word", "shapes" or "digit" to
    make sure that the scene holds one."""
    canvas = _Canvas(rng)
    word, letters, digit = None, [], None
    has_word = kind == "word" or rng.random() < 0.65
    has_digit = kind == "digit" or rng.random() < 0.35
    if has_word:
        word = draw_word(rng, held_out)
        letters = canvas.write(word, unseen_fonts)
    if has_digit:
        digit = canvas.handwrite(held_out)
    shapes: list[Shape] = []
    if kind == "shapes" or not (has_word or has_digit) or rng.random() < 0.8:
        shapes = canvas.place_shapes(rng.randint(1, 5))
    return Scene(canvas.finish(), word, letters, shapes, digit)


class _Canvas:
    """The picture under construction: background, occupied boxes, and how to add things that stay apart."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.boxes: list[Box] = []
        level = rng.choice((rng.randint(165, 245), rng.randint(165, 245), rng.randint(10, 70)))
        self.background: Color = _jitter(rng, (level, level, level), 12)
        self.image = Image.fromarray(_gradient(rng, self.background))
        draw = ImageDraw.Draw(self.image)
        for _ in range(rng.randint(2, 9)):
            _clutter(rng, draw, _jitter(rng, self.background, 38))

    def write(self, word: str, unseen_fonts: bool) -> list[tuple[str, float, float]]:
        """Draw the word, turned by up to 12 degrees; the centres of its letters."""
        rng = self.rng
        package, folder, name = rng.choice(font_names(unseen_fonts))
        size = rng.randint(15, 24)
        angle = rng.uniform(-12, 12) if rng.random() < 0.7 else 0.0
        while True:
            font = load_font(package, folder, name, size)
            left, top, right, bottom = font.getbbox(word)
            width, height = right - left, bottom - top
            cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            if width * cosine + height * abs(sine) <= SIZE - 6:
                break
            size -= 1
        mask = Image.new("L", (math.ceil(width) + 2, math.ceil(height) + 2), 0)
        ImageDraw.Draw(mask).text((1 - left, 1 - top), word, font=font, fill=255)
        turned = mask.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        x, y = rng.randint(0, SIZE - turned.width), rng.randint(0, SIZE - turned.height)
        self.image.paste(self._ink(), (x, y), turned)
        self.boxes.append((x, y, x + turned.width, y + turned.height))
        letters = []
        for index, letter in enumerate(word):
            middle = (font.getlength(word[:index]) + font.getlength(word[: index + 1])) / 2 - left + 1
            dx, dy = middle - mask.width / 2, 0.0
            letters.append(
                (
                    letter,
                    x + turned.width / 2 + dx * cosine + dy * sine,
                    y + turned.height / 2 - dx * sine + dy * cosine,
                )
            )
        return letters

    def handwrite(self, held_out: bool) -> tuple[int, float, float] | None:
        """Draw a handwritten digit where there is room; its value and centre."""
        rng = self.rng
        images, labels = handwritten(held_out)
        index = rng.randrange(len(images))
        size = rng.randint(24, 34)
        mask = Image.fromarray((images[index] * 255).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
        mask = mask.rotate(rng.uniform(-10, 10), Image.Resampling.BICUBIC)
        spot = self._free(size / 2 - 2)
        if spot is None:
            return None
        x, y = round(spot[0] - size / 2), round(spot[1] - size / 2)
        self.image.paste(self._ink(), (x, y), mask)
        return int(labels[index]), x + size / 2, y + size / 2

    def place_shapes(self, count: int) -> list[Shape]:
        """Up to `count` shapes of one to four kinds, where there is room."""
        rng = self.rng
        kinds = rng.sample(SHAPES, rng.randint(1, 4))
        visible = [name for name, color in COLORS.items() if math.dist(color, self.background) > 85]
        shapes = []
        for _ in range(count):
            radius = rng.uniform(6.0, 11.0)
            spot = self._free(radius + 1)
            if spot is None:
                continue
            shape = Shape(rng.choice(kinds), rng.choice(visible), *spot, radius)
            _draw_shape(rng, self.image, shape)
            shapes.append(shape)
        return shapes

    def finish(self) -> NDArray[np.uint8]:
        """The pixels, with thin lines over everything, blur and noise."""
        rng = self.rng
        draw = ImageDraw.Draw(self.image)
        for _ in range(rng.choice((0, 0, 1))):
            ends = [rng.uniform(-10, SIZE + 10) for _ in range(4)]
            draw.line(ends, fill=_jitter(rng, self.background, 30), width=1)
        image = self.image
        if rng.random() < 0.25:
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.7)))
        generator = np.random.RandomState(rng.randrange(2**31))
        noise = generator.standard_normal((SIZE, SIZE, 3)) * rng.uniform(0, 12)
        return np.clip(np.asarray(image, dtype=np.float64) + noise, 0, 255).astype(np.uint8)

    def _ink(self) -> Color:
        """A colour that stands out from the background in brightness."""
        while True:
            ink: Color = (self.rng.randint(0, 255), self.rng.randint(0, 255), self.rng.randint(0, 255))
            if abs(_luminance(ink) - _luminance(self.background)) > 85:
                return ink

    def _free(self, radius: float) -> tuple[float, float] | None:
        """A centre with `radius` of free room around it, which is then taken; None after 40 tries."""
        for _ in range(40):
            x, y = self.rng.uniform(radius, SIZE - radius), self.rng.uniform(radius, SIZE - radius)
            box = (x - radius, y - radius, x + radius, y + radius)
            if not any(
                box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
                for other in self.boxes
            ):
                self.boxes.append(box)
                return x, y
        return None


def _luminance(color: Color) -> float:
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]


def _jitter(rng: random.Random, color: Color, spread: int) -> Color:
    red, green, blue = (min(255, max(0, channel + rng.randint(-spread, spread))) for channel in color)
    return red, green, blue


def _gradient(rng: random.Random, color: Color) -> NDArray[np.uint8]:
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, 28)
    axis = np.linspace(-0.5, 0.5, SIZE)
    slope = (np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]) * strength
    return np.clip(np.array(color)[None, None] + slope[..., None], 0, 255).astype(np.uint8)


def _clutter(rng: random.Random, draw: ImageDraw.ImageDraw, color: Color) -> None:
    x, y, reach = rng.uniform(0, SIZE), rng.uniform(0, SIZE), rng.uniform(4, 45)
    box = (x, y, x + reach, y + reach * rng.uniform(0.3, 1.5))
    match rng.randrange(4):
        case 0:
            draw.line(box, fill=color, width=rng.randint(1, 3))
        case 1:
            draw.arc(box, rng.randint(0, 180), rng.randint(181, 360), fill=color, width=rng.randint(1, 2))
        case 2:
            draw.rectangle(box, outline=color)
        case _:
            for _ in range(rng.randint(5, 25)):
                draw.point((rng.uniform(0, SIZE), rng.uniform(0, SIZE)), fill=color)


def _draw_shape(rng: random.Random, image: Image.Image, shape: Shape) -> None:
    """Draw at four times the size, turned, then shrink: smooth edges."""
    scale, radius = 4, shape.radius * 4
    half = math.ceil(radius) + 4
    mask = Image.new("L", (2 * half, 2 * half), 0)
    draw = ImageDraw.Draw(mask)
    turn = rng.uniform(-0.35, 0.35)
    match shape.name:
        case "circle":
            draw.ellipse((half - radius, half - radius, half + radius, half + radius), fill=255)
        case "ring":
            draw.ellipse((half - radius, half - radius, half + radius, half + radius), fill=255)
            inner = radius * 0.55
            draw.ellipse((half - inner, half - inner, half + inner, half + inner), fill=0)
        case "cross":
            arm, reach = radius * 0.3, radius
            corners = [(-arm, -reach), (arm, -reach), (arm, -arm), (reach, -arm), (reach, arm), (arm, arm)]
            corners += [(-x, -y) for x, y in corners]
            draw.polygon(_turned(corners, turn, half), fill=255)
        case name:
            sides = {"square": 4, "triangle": 3, "star": 10}[name]
            corners = []
            for index in range(sides):
                reach = radius * (0.42 if name == "star" and index % 2 else 1.0)
                angle = -math.pi / 2 + 2 * math.pi * index / sides + (math.pi / 4 if name == "square" else 0)
                corners.append((reach * math.cos(angle), reach * math.sin(angle)))
            draw.polygon(_turned(corners, turn, half), fill=255)
    side = math.ceil(2 * half / scale)
    small = mask.resize((side, side), Image.Resampling.BOX)
    color = _jitter(rng, COLORS[shape.color], 16)
    image.paste(color, (round(shape.x - side / 2), round(shape.y - side / 2)), small)


def _turned(corners: list[tuple[float, float]], angle: float, centre: float) -> list[tuple[float, float]]:
    cosine, sine = math.cos(angle), math.sin(angle)
    return [(centre + x * cosine - y * sine, centre + x * sine + y * cosine) for x, y in corners]
