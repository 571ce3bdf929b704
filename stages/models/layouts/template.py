"""The prompt of a checkpoint, got by rendering its chat template for one question about one image."""

import json
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipelines.errors import CheckpointError
from stages.models.description import read_object

IMAGE, QUESTION = "{image}", "{question}"
_MARK = "QUESTION-OF-TAPEOUT"  # stands for the question while the template is rendered


def prompt_template(folder: Path, image_token: str | None) -> str:
    """preprocessing.json's prompt_template: what a user's message "<image>\\n{question}" becomes.

    image_token: as the checkpoint writes it; None: the model sees no images, and without a chat template a question
    stands alone. Raises CheckpointError for a template that is missing where there are images, or that loses what it
    was given.
    """
    found = _chat_template(folder)
    if found is None:
        if image_token is None:
            return QUESTION
        raise CheckpointError(
            f"{folder} has no chat template: chat_template is missing in tokenizer_config.json",
            hint="Add that key, or a file chat_template.jinja, from the model's source; prompts depend on it.",
        )
    source, path = found
    plain = _MARK if image_token is None else f"{image_token}\n{_MARK}"
    parts = [{"type": "text", "text": _MARK}]
    if image_token is not None:
        parts.insert(0, {"type": "image"})
    contents: tuple[Any, ...] = (plain, parts)
    rendered = ""
    for content in contents:  # older templates take a string, those of processors a list of parts
        rendered = _render(source, path, content, _special_tokens(folder))
        whole = rendered.count(_MARK) == 1 and (image_token is None or rendered.count(image_token) == 1)
        if whole and not any(mark in rendered for mark in (IMAGE, QUESTION)):
            prompt = rendered.replace(_MARK, QUESTION)
            return prompt if image_token is None else prompt.replace(image_token, IMAGE)
    wanted = "the question" if image_token is None else f"{image_token} and the question"
    raise CheckpointError(
        f"{path}: the chat template does not give back {wanted} once each; it renders {rendered[:200]!r}",
        hint="Take the chat template that belongs to the model.",
    )


def _chat_template(folder: Path) -> tuple[str, Path] | None:
    """The template and the file that it lies in."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8"), path
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        path = folder / name
        value = read_object(path).get("chat_template") if path.is_file() else None
        if isinstance(value, list):  # several by name
            named = {each.get("name"): each.get("template") for each in value if isinstance(each, dict)}
            value = named.get("default")
        if isinstance(value, str):
            return value, path
        if value is not None:
            raise CheckpointError(
                f"{path}: chat_template is {json.dumps(value)[:60]}; expected a string, or a list with a 'default'"
            )
    return None


def _special_tokens(folder: Path) -> dict[str, str]:
    path = folder / "tokenizer_config.json"
    values = read_object(path) if path.is_file() else {}
    tokens = {key: value.get("content") if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in tokens.items() if key.endswith("_token") and isinstance(value, str)}


def _render(source: str, path: Path, content: Any, tokens: dict[str, str]) -> str:
    def refuse(message: str = "it raises an exception") -> NoReturn:
        raise TemplateError(message)

    def today(format: str = "") -> NoReturn:
        raise TemplateError("it asks for today's date, so that prompts would differ from day to day")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals.update(raise_exception=refuse, strftime_now=today)
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    messages = [{"role": "user", "content": content}]
    try:
        return environment.from_string(source).render(messages=messages, add_generation_prompt=True, **tokens)
    except (
        TemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        RecursionError,
    ) as cause:
        if isinstance(content, str):
            return ""  # the list of parts is tried next
        raise CheckpointError(
            f"{path}: the chat template cannot be rendered: {cause}", hint="Take the one that belongs to the model."
        ) from cause
