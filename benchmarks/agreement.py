"""How often the devices of the last build give the same answer: every pair of validated devices, question by question.

python benchmarks/agreement.py [--json FILE]
"""

import argparse
import json
from itertools import combinations
from pathlib import Path

from stages.evaluation.answers import Answer, read_answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    answers = {
        path.parent.name.removeprefix("validate-"): read_answers(path)
        for path in sorted(Path("artifacts/build").glob("validate*/answers.jsonl"))
    }
    if len(answers) < 2:
        raise SystemExit(
            "fewer than two validated devices in artifacts/build: run `tapeout build` with two devices first"
        )
    figures = []
    for first, second in combinations(answers, 2):
        same = sum(a.tokens == b.tokens for a, b in paired(answers[first], answers[second]))
        total = len(answers[first])
        figures.append({"devices": [first, second], "same": same, "questions": total})
        print(f"{first} and {second}: {same} of {total} answers equal, {100 * same / total:.2f} %")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def paired(first: list[Answer], second: list[Answer]) -> list[tuple[Answer, Answer]]:
    if [answer.question for answer in first] != [answer.question for answer in second]:
        raise SystemExit("the devices answered different questions: build them together")
    return list(zip(first, second, strict=True))


if __name__ == "__main__":
    main()
