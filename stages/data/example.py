"""A question about an image, and those that are asked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import StageError
from stages.data.image import to_rgb


@dataclass(frozen=True)
class Example:
    """picture: (H, W, 3) uint8, or the image's file. answers: the accepted ones. image_id is equal for questions about
    the same image. metric: how an answer is scored, a key of scores.KINDS. where: of a line of your own, which."""

    picture: NDArray[np.uint8] | Path
    question: str
    answers: tuple[str, ...]
    task: str
    image_id: int
    metric: str
    where: str = ""

    @property
    def image(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8, upright and opaque (see to_rgb). A file is read each time, and not kept."""
        if isinstance(self.picture, np.ndarray):
            return self.picture
        try:
            return np.asarray(to_rgb(self.picture))
        except StageError as error:
            raise StageError(f"{self.where}: {error.message}", hint=error.hint) from error

    @property
    def answer(self) -> str:
        """The first of the accepted ones."""
        return self.answers[0]


class Questions(Sequence[Example]):
    """What is asked, and the whole set that it was drawn from: how rare a caption's words are is counted in all."""

    def __init__(self, asked: Sequence[Example], corpus: Sequence[Example]):
        self._asked, self.corpus = list(asked), list(corpus)

    def __len__(self) -> int:
        return len(self._asked)

    def __iter__(self) -> Iterator[Example]:
        return iter(self._asked)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        return self._asked[index]
