"""How often the files of the last build give the same answer: every pair of them, question by question. Devices that
ship the same files are one, called by the first.

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
    answers = last_answers()
    if len(answers) < 2:
        raise SystemExit("the last build evaluated fewer than two devices: run `tapeout build` with two or more")
    figures = []
    for first, second in combinations(answers, 2):
        same = sum(a.tokens == b.tokens for a, b in paired(answers[first], answers[second]))
        total = len(answers[first])
        figures.append({"devices": [first, second], "same": same, "questions": total})
        print(f"{first} and {second}: {same} of {total} answers equal, {100 * same / total:.2f} %")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def last_answers() -> dict[str, list[Answer]]:
    """The answers of each device of the last build with files of its own, from the nodes that its summary names."""
    last = Path(".tapeout/last.json")
    if not last.is_file():
        raise SystemExit("nothing has been built here: run `tapeout build` first")
    return {
        node["devices"][0]: read_answers(Path("artifacts/build") / node["name"] / "answers.jsonl")
        for node in json.loads(last.read_text(encoding="utf-8"))["nodes"]
        if node["stage"] == "evaluate" and node["status"] in ("built", "cached")
    }


def paired(first: list[Answer], second: list[Answer]) -> list[tuple[Answer, Answer]]:
    if [answer.question for answer in first] != [answer.question for answer in second]:
        raise SystemExit("the devices answered different questions: build them together")
    return list(zip(first, second, strict=True))


if __name__ == "__main__":
    main()
