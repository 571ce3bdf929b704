"""Training batches of the reference data: each a pure function of (seed, step), so that training can stop anywhere."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from stages.data.digits import handwritten
from stages.data.questions import Question, ask, ask_place
from stages.data.scenes import COLORS, SHAPES, SIZE, Scene, draw_scene
from stages.data.words import LETTERS

QUESTIONS, LENGTH = 4, 16
GRIDS = (len(LETTERS) + 1, len(SHAPES) + 1, len(COLORS) + 1, 10 + 1)


@dataclass
class Batch:
    """B images, each with K packed questions that share it.

    pixels (B, 96, 96, 3) uint8; ids (B, K, L) int64, padded with 0; answers (B, K, L) bool, True where ids are to be
    predicted; grids (B, 4, tokens) int64: letter, shape, colour and digit at each visual token, 0 where there is none.
    """

    pixels: torch.Tensor
    ids: torch.Tensor
    answers: torch.Tensor
    grids: torch.Tensor


def training_batches(
    tokenizer: Tokenizer, *, seed: int, batch: int, grid: tuple[int, int], start: int, stop: int, workers: int = 1
) -> DataLoader[Batch]:
    """The batches of steps start..stop-1, drawn by one worker beside the training process, or (0) by none."""
    dataset = _Batches(tokenizer.to_str(), seed, batch, grid, start, stop)
    if not workers:
        return DataLoader(dataset, batch_size=None)
    return DataLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=4, multiprocessing_context="spawn")


class _Batches(IterableDataset[Batch]):
    def __init__(self, tokenizer: str, seed: int, batch: int, grid: tuple[int, int], start: int, stop: int):
        self.tokenizer, self.seed, self.batch, self.grid = tokenizer, seed, batch, grid
        self.start, self.stop = start, stop

    def __iter__(self) -> Iterator[Batch]:
        if get_worker_info() is not None:
            torch.set_num_threads(1)
        handwritten(False)
        tokenizer = Tokenizer.from_str(self.tokenizer)
        for step in range(self.start, self.stop):
            yield _draw_batch(tokenizer, random.Random(f"train:{self.seed}:{step}"), self.batch, self.grid)


def _draw_batch(tokenizer: Tokenizer, rng: random.Random, count: int, grid: tuple[int, int]) -> Batch:
    ids = np.zeros((count, QUESTIONS, LENGTH), np.int64)
    answers = np.zeros((count, QUESTIONS, LENGTH), bool)
    pixels, grids = [], []
    for row in range(count):
        scene = draw_scene(rng, held_out=False)
        pixels.append(scene.pixels)
        grids.append(label_grid(scene, grid))
        for column, question in enumerate(_choose(rng, scene)):
            prompt = tokenizer.encode(question.text + "<|im_start|>").ids
            answer = tokenizer.encode(question.answer + "<|im_end|>").ids
            ids[row, column, : len(prompt) + len(answer)] = prompt + answer
            answers[row, column, len(prompt) : len(prompt) + len(answer)] = True
    return Batch(
        torch.from_numpy(np.stack(pixels)),
        torch.from_numpy(ids),
        torch.from_numpy(answers),
        torch.from_numpy(np.stack(grids)),
    )


def _choose(rng: random.Random, scene: Scene) -> list[Question]:
    """The questions to train on: the word, two relations, some of the digits and places; then any others.

    Relations are learned last, so they are asked most, and get a step to stand on: the place of one thing, seen from
    the middle.
    """
    first = ask(rng, scene)
    again = [question for question in ask(rng, scene) if question.task == "position"]
    wanted = {"ocr", "position"} | ({"digit"} if rng.random() < 0.5 else set())
    rare = [question for question in first + again if question.task in wanted]
    rare += ask_place(rng, scene) if rng.random() < 0.3 else []
    others = [question for question in first if question not in rare]
    rng.shuffle(others)
    return list(dict.fromkeys(rare + others))[:QUESTIONS]


def label_grid(scene: Scene, grid: tuple[int, int]) -> NDArray[np.int64]:
    """(4, rows * columns): what stands in each cell of the visual tokens' grid."""
    rows, columns = grid
    labels = np.zeros((len(GRIDS), rows, columns), np.int64)

    def mark(layer: int, x: float, y: float, label: int) -> None:
        row, column = int(y * rows / SIZE), int(x * columns / SIZE)
        labels[layer, min(rows - 1, max(0, row)), min(columns - 1, max(0, column))] = 1 + label

    for letter, x, y in scene.letters:
        mark(0, x, y, LETTERS.index(letter))
    for shape in scene.shapes:
        mark(1, shape.x, shape.y, SHAPES.index(shape.name))
        mark(2, shape.x, shape.y, list(COLORS).index(shape.color))
    if scene.digit:
        mark(3, scene.digit[1], scene.digit[2], scene.digit[0])
    return labels.reshape(len(GRIDS), -1)
