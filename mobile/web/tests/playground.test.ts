/** What the playground's page computes itself: scores as Python's, differences, figures. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { pieces } from "../playground/differences";
import { type Metric, score } from "../playground/score";
import { Turns } from "../playground/turns";
import { bytes, duration, figure, joined } from "../playground/words";

// Expected: stages.evaluation.scores.Scorer of the same.
const SCORES: [Metric, string, string[], number | null][] = [
  ["literal", " red ", ["red"], 1],
  ["literal", "Red", ["red"], 0],
  ["word", "PYCKD", ["PYCKD"], 1],
  ["exact", "Yes.", ["yes"], 1],
  ["exact", "a  bread", ["loaf", "A bread!"], 1],
  ["exact", "...", ["yes"], 0],
  ["facts", "a red star, a blue ring", ["a blue ring, a red star"], 1],
  ["facts", "a red star, a red star", ["a red star, a blue ring"], 0.5],
  ["facts", "a red star", ["a red star, a blue ring, a pink ring"], 1 / 3],
  ["facts", "", ["a red star"], 0],
  ["cer", "cat", ["car"], 2 / 3],
  ["cer", "entirely other", ["x"], 0],
  ["cer", "e\u0301t\u00e9", ["\u00e9t\u00e9"], 1],
  ["anls", "Berlin", ["berlin"], 1],
  ["anls", "Berlim", ["berlin", "paris"], 5 / 6],
  ["anls", "be", ["berlin"], 0],
  ["cider", "a dog runs", ["a dog runs"], null],
];

test("answers are scored as stages/evaluation/scores.py does", () => {
  for (const [metric, answer, accepted, expected] of SCORES) {
    const found = score(metric, answer, accepted);
    const said = `${metric}: ${answer} | ${accepted.join(" | ")}`;
    if (expected === null || found === null) assert.equal(found, expected, said);
    else assert.ok(Math.abs(found - expected) < 1e-12, `${said}: ${found}`);
  }
});

test("the words that set two answers apart", () => {
  const marked = (text: string, other: string): string =>
    pieces(text, other)
      .map((each) => (each.same ? each.text : `[${each.text}]`))
      .join(" ");
  assert.equal(marked("a red star, a blue ring", "a red star, a cyan ring"), "a red star, a [blue] ring");
  assert.equal(marked("a b c d", "b d"), "[a] b [c] d");
  assert.equal(marked("b d", "a b c d"), "b d");
  assert.equal(marked("one two", "three"), "[one two]");
  assert.equal(marked("a b a", "a a"), "a [b] a");
  assert.equal(marked("", "a"), "");
  assert.equal(marked("a", ""), "[a]");
});

test("figures have three digits", () => {
  assert.deepEqual([0.4217, 7.312, 12.04, 128.4, 12400, NaN, 50].map(figure), ["0.42", "7.31", "12", "128", "12\u202f400", "–", "50"]);
  assert.equal(joined(duration(12.34)), "12.3 ms");
  assert.equal(joined(duration(32_100)), "32.1 s");
  assert.equal(joined(bytes(3.25 * 2 ** 20)), "3.25 MiB");
  assert.equal(joined(bytes(512 * 1024)), "512 KiB");
});

test("one turn at a time: the next stops the one before, and what was overtaken never begins", async () => {
  const said: string[] = [];
  const turns = new Turns((busy) => said.push(busy ? "begins" : "ends"));
  const work = (name: string) => (signal: AbortSignal) =>
    new Promise<void>((done) => {
      said.push(name);
      signal.addEventListener("abort", () => setTimeout(done, 5));
      if (name === "last") done();
    });
  const first = turns.take(work("first"));
  await Promise.resolve();
  const second = turns.take(work("overtaken"));
  const third = turns.take(work("last"));
  await Promise.all([first, second, third]);
  assert.deepEqual(said, ["begins", "first", "ends", "begins", "last", "ends"]);
  assert.equal(turns.busy, false);
  await assert.rejects(turns.take(() => Promise.reject(new Error("broken"))), /broken/);
  await turns.take(work("last"));
});
