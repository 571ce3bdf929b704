/** An answer's figures: four large ones, and all of them to unfold. */
import type { AnswerMetrics } from "../src/index";
import { element, say } from "./dom";
import { bytes, duration, figure } from "./words";

type Reading = (metrics: AnswerMetrics) => [string, string];

const LARGE: [name: string, title: string, read: Reading][] = [
  ["first_token", "First token", (metrics) => duration(metrics.first_token_ms)],
  ["tokens_per_s", "Tokens a second", (metrics) => (metrics.tokens_per_s ? [figure(metrics.tokens_per_s), ""] : ["–", ""])],
  ["encode", "Image encoding", (metrics) => (metrics.encode_ms ? duration(metrics.encode_ms) : ["kept", ""])],
  ["memory", "Memory", (metrics) => bytes(metrics.peak_memory_bytes)],
];
const SMALL: typeof LARGE = [
  ["prepare", "Decoding and resizing", (metrics) => duration(metrics.prepare_ms)],
  ["prefill", "Reading the prompt", (metrics) => duration(metrics.prefill_ms)],
  ["token", "Each further token", (metrics) => (metrics.token_ms ? duration(metrics.token_ms) : ["–", ""])],
  ["tokens", "Tokens", (metrics) => [String(metrics.tokens), ""]],
];

export class Figures {
  readonly part = element("div", { className: "measured" });
  latest: AnswerMetrics | null = null;
  #opening = element("p", { className: "note" });
  #places = new Map<string, HTMLElement>();
  #ratios = new Map<string, HTMLElement>();

  constructor() {
    this.part.append(
      element("dl", { className: "figures" }, ...LARGE.map((each) => this.#place(each, true))),
      element("details", {}, element("summary", {}, "More figures"), element("dl", { className: "pairs" }, ...SMALL.map((each) => this.#place(each, false))), this.#opening),
    );
    this.clear();
  }

  show(metrics: AnswerMetrics): void {
    this.latest = metrics;
    for (const [name, , read] of [...LARGE, ...SMALL]) {
      const [value, unit] = read(metrics);
      this.#places.get(name)?.replaceChildren(value, unit && element("small", {}, ` ${unit}`));
    }
  }

  /** Keeps what opening the bundle took, in words. */
  opened(words: string): void {
    say(this.#opening, words);
  }

  clear(): void {
    this.latest = null;
    for (const place of this.#places.values()) say(place, "–");
    for (const ratio of this.#ratios.values()) say(ratio, "");
  }

  /** Says beside each large figure how many times the other's it is. */
  compare(other: Figures, label: string): void {
    if (!this.latest || !other.latest) return;
    for (const [name, key] of [
      ["first_token", "first_token_ms"],
      ["tokens_per_s", "tokens_per_s"],
      ["encode", "encode_ms"],
      ["memory", "peak_memory_bytes"],
    ] as const) {
      const [own, others] = [this.latest[key], other.latest[key]];
      const ratio = this.#ratios.get(name);
      if (ratio) say(ratio, own && others ? `${figure(own / others)} × ${label}` : "");
    }
  }

  #place([name, title]: (typeof LARGE)[number], large: boolean): HTMLElement {
    const value = element(large ? "b" : "span", {});
    value.dataset["figure"] = name;
    this.#places.set(name, value);
    const described = element("dd", {}, value);
    if (large) {
      const ratio = element("small", { className: "ratio" });
      this.#ratios.set(name, ratio);
      described.append(ratio);
    }
    return element("div", {}, element("dt", {}, title), described);
  }
}
