"""From a question to token numbers and back, as preprocessing.json says."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pipelines.errors import CheckpointError, StageError, nearest

IMAGE, QUESTION = "{image}", "{question}"


@dataclass(frozen=True)
class PromptFormat:
    """template holds {image} at most once and {question} once; all else in it is text, special tokens included.

    image_tokens: how often image_token_id (None: of a text model) stands where {image} does. end_id ends an answer.
    """

    tokenizer: Tokenizer
    template: str
    image_token_id: int | None
    image_tokens: int
    end_id: int
    max_new_tokens: int

    @classmethod
    def open(cls, folder: Path, image_token_id: int | None, image_tokens: int) -> "PromptFormat":
        """From the tokenizer.json and preprocessing.json of an artifact's folder. Raises CheckpointError."""
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            preprocessing = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
        except Exception as cause:  # tokenizers raises plain Exception
            raise CheckpointError(
                f"tokenizer.json or preprocessing.json in {folder} cannot be read: {cause}",
                hint="Expected both as the load stage wrote them.",
            ) from cause
        return cls.of(tokenizer, preprocessing, image_token_id, image_tokens)

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, preprocessing: dict[str, Any], image_token_id: int | None, image_tokens: int
    ) -> "PromptFormat":
        """Raises CheckpointError for a template without {question} or an end token that the tokenizer does not know."""
        template, end = preprocessing["prompt_template"], preprocessing["end_token"]
        if template.count(QUESTION) != 1 or template.count(IMAGE) > 1:
            raise CheckpointError(
                f"preprocessing.json: prompt_template is {template!r}",
                hint=f"Expected {QUESTION} once and {IMAGE} at most once in it.",
            )
        end_id = tokenizer.token_to_id(end)
        if end_id is None:
            raise CheckpointError(
                f"preprocessing.json: end_token {end!r} is not in tokenizer.json",
                hint=nearest(end, tokenizer.get_vocab()) or "Expected one of the tokenizer's tokens.",
            )
        count = int(preprocessing["max_new_tokens"])
        return cls(tokenizer, template, image_token_id, image_tokens, end_id, count)

    def encode(self, question: str) -> list[int]:
        """The prompt's token numbers, the image token repeated. Raises StageError where the question holds one."""
        ids: list[int] = []
        for index, text in enumerate(self.template.split(IMAGE)):
            part = self.tokenizer.encode(text.replace(QUESTION, question), add_special_tokens=False).ids
            if self.image_token_id is not None and self.image_token_id in part:
                raise StageError(
                    f"the question {question!r} holds the image token",
                    hint=f"The image's place is {IMAGE} in prompt_template; leave the token out of the question.",
                )
            if index and self.image_token_id is not None:
                ids += [self.image_token_id] * self.image_tokens
            ids += part
        return ids

    def decode(self, ids: list[int]) -> str:
        """An answer's text, without special tokens and outer blanks."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
