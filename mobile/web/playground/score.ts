/** How right an answer is, from 0 to 1, as stages/evaluation/scores.py has it; null where a page cannot tell (CIDEr
 * counts in the captions of a whole set). */

export type Metric = "literal" | "word" | "facts" | "exact" | "cer" | "anls" | "cider";

const ANLS_THRESHOLD = 0.5;
const CLOSING = /[.,;:!? ]+$/;

export function score(metric: Metric, answer: string, accepted: readonly string[]): number | null {
  switch (metric) {
    case "literal":
    case "word":
      return Number(accepted.some((each) => each.trim() === answer.trim()));
    case "exact":
      return Number(accepted.some((each) => shortAnswer(each) === shortAnswer(answer)));
    case "facts":
      return sharedFacts(answer, accepted[0] ?? "");
    case "cer":
      return Math.max(0, 1 - Math.min(...accepted.map((each) => errorRate(tidy(answer), tidy(each)))));
    case "anls": {
      const nearest = Math.min(...accepted.map((each) => distanceShare(folded(answer), folded(each))));
      return nearest < ANLS_THRESHOLD ? 1 - nearest : 0;
    }
    case "cider":
      return null;
  }
}

/** NFC, blanks as single spaces. */
function tidy(text: string): string {
  return text.normalize("NFC").split(/\s+/u).filter(Boolean).join(" ");
}

function folded(text: string): string {
  return tidy(tidy(text).toLowerCase());
}

/** Without case and closing marks, unless it is nothing else. */
function shortAnswer(text: string): string {
  return folded(text).replace(CLOSING, "") || folded(text);
}

/** The share of phrases, such as "a red star", that both name. */
function sharedFacts(answer: string, expected: string): number {
  const [said, truth] = [facts(answer), facts(expected)];
  const most = Math.max(said.length, truth.length);
  const left = [...truth];
  let shared = 0;
  for (const each of said) {
    const place = left.indexOf(each);
    if (place < 0) continue;
    left.splice(place, 1);
    shared += 1;
  }
  return most ? shared / most : 0;
}

function facts(caption: string): string[] {
  return caption
    .split(",")
    .map((each) => each.trim())
    .filter(Boolean);
}

function errorRate(said: string, accepted: string): number {
  return distance(said, accepted) / Math.max([...accepted].length, 1);
}

function distanceShare(said: string, accepted: string): number {
  return distance(said, accepted) / Math.max([...said].length, [...accepted].length, 1);
}

/** Levenshtein's, in characters. */
function distance(first: string, second: string): number {
  const letters = [...first];
  let row = [0, ...letters.map((_, place) => place + 1)];
  for (const [place, letter] of [...second].entries()) {
    const next = [place + 1];
    for (const [column, other] of letters.entries())
      next.push(Math.min(row[column + 1]! + 1, next[column]! + 1, row[column]! + Number(other !== letter)));
    row = next;
  }
  return row[letters.length]!;
}
