"""What the float checkpoint can do: accuracy on held-out questions, and a sheet of test images with its answers.

python benchmarks/reference.py [--checkpoint DIR] [--per-task N] [--json FILE] [--sheet FILE.png]
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from pipelines.workspace import Workspace
from stages.artifacts import Checkpoint
from stages.baseline import baseline
from stages.data.fonts import load_font
from stages.data.source import Example, question_source
from stages.evaluation.answers import Answer, read_answers
from stages.evaluation.names import TASKS
from stages.schema import QuestionsConfig

SEED = 101  # not the seed of the build's questions
ZOOM, LINE = 2, 13


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("artifacts/reference"))
    parser.add_argument("--per-task", type=int, default=300)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    checkpoint = Checkpoint(options.checkpoint)
    config = QuestionsConfig(path=None, per_task=options.per_task, seed=SEED, tasks={})
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "out").mkdir()
        given = {"checkpoint": checkpoint, "config": config}
        result = baseline(checkpoint, config, Workspace(Path(folder) / "out", Path(folder) / "scratch", given=given))
        tasks, answers = result.metrics()["tasks"], read_answers(result.path / "answers.jsonl")
    with checkpoint.tensors() as tensors:
        parameters = sum(tensors[name].numel() for name in tensors)
    print(f"{parameters / 1e6:.2f} M parameters, {checkpoint.weights.stat().st_size / 2**20:.2f} MiB as float16")
    print(f"{'task':<18}{'questions':>10}{'right':>9}")
    for task in TASKS:
        print(f"{task:<18}{tasks[task]['n']:>10}{100 * tasks[task]['fp32']:>8.1f} %")
    print(f"{'all':<18}{len(answers):>10}{100 * sum(answer.score for answer in answers) / len(answers):>8.1f} %")
    if options.json:
        values = {"parameters": parameters, "seed": SEED, "tasks": tasks}
        options.json.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if options.sheet:
        examples = question_source().by_task(config.per_task, SEED)
        contact_sheet(examples, answers, options.per_task).save(options.sheet)


def contact_sheet(examples: list[Example], answers: list[Answer], per_task: int) -> Image.Image:
    """The first questions of each task, 32 in all, eight a row: image, question, answer; wrong answers in red."""
    order = [task * per_task + place for place in range(4) for task in range(len(TASKS))]
    chosen = [index for index in order if index < len(examples)][:32]
    side = examples[0].image.shape[0] * ZOOM
    cell = (side + 8, side + 4 * LINE)
    sheet = Image.new("RGB", (8 * cell[0], 4 * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    font = load_font("matplotlib", "mpl-data/fonts/ttf", "DejaVuSans", 10)
    for place, index in enumerate(chosen):
        left, top = (place % 8) * cell[0], (place // 8) * cell[1]
        image = Image.fromarray(examples[index].image).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(image, (left, top))
        answer = answers[index]
        words, lines = answer.question.split(), [""]
        for word in words:
            if font.getlength(f"{lines[-1]} {word}") > side:
                lines.append("")
            lines[-1] = f"{lines[-1]} {word}".strip()
        for number, line in enumerate(lines[:2]):
            draw.text((left, top + side + 1 + number * LINE), line, "black", font)
        text = answer.answer if answer.score == 1 else f"{answer.answer}  (it is {answer.expected})"
        draw.text(
            (left, top + side + 1 + min(2, len(lines)) * LINE), text, "green" if answer.score == 1 else "red", font
        )
    return sheet


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
