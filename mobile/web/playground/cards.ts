/** The questions to click through: a card each, a filter, and how many were answered right. */
import { element, find, say } from "./dom";
import { type Question, type Site, address } from "./site";
import { counted, figure } from "./words";

const ALL = "";
const CHANGED = "*"; // no task is called so

interface Card {
  question: Question;
  part: HTMLElement;
  button: HTMLButtonElement;
  marks: HTMLElement;
  scores: (number | null | undefined)[]; // by column; undefined: not asked
}

export class Cards {
  current: number | null = null;
  #cards: Card[];
  #task = find<HTMLSelectElement>("task");

  /** labels: of the columns. picked: told of a click on a question. */
  constructor(
    site: Site,
    private readonly labels: string[],
    private readonly picked: (place: number) => void,
  ) {
    this.#cards = site.questions.map((question, place) => this.#card(question, place));
    find("cards").append(...this.#cards.map((card) => card.part));
    find("set").hidden = this.#cards.length === 0;
    say(find("set-source"), `${counted(this.#cards.length, "question")} of ${site.source.replace(/^the /, "the ")}. Click one to ask it.`);
    const tasks = new Map<string, number>();
    for (const { task } of site.questions) tasks.set(task, (tasks.get(task) ?? 0) + 1);
    const changed = site.questions.filter((each) => each.changed).length;
    this.#task.append(
      element("option", { value: ALL }, `all ${this.#cards.length}`),
      ...[...tasks].map(([task, count]) => element("option", { value: task }, `${task.replaceAll("_", " ")} (${count})`)),
      ...(changed ? [element("option", { value: CHANGED }, `whose answers changed in the build (${changed})`)] : []),
    );
    this.#task.onchange = () => this.#filter();
    this.#filter();
  }

  /** The places of those that the filter shows. */
  get shown(): number[] {
    const wanted = this.#task.value;
    const all = this.#cards.map((_, place) => place);
    return all.filter((place) => {
      const { question } = this.#cards[place]!;
      return wanted === ALL || (wanted === CHANGED ? question.changed : question.task === wanted);
    });
  }

  question(place: number): Question {
    return this.#cards[place]!.question;
  }

  /** Marks the question that is asked now; null: none of these. */
  select(place: number | null): void {
    if (this.current !== null) this.#cards[this.current]?.button.setAttribute("aria-pressed", "false");
    this.current = place;
    const known = find("known");
    known.hidden = this.#cards.length === 0;
    if (place === null) {
      say(find("expected"), "A question of your own");
      return;
    }
    const card = this.#cards[place]!;
    card.button.setAttribute("aria-pressed", "true");
    const { task, answers, original } = card.question;
    const others = original !== null && !answers.includes(original) ? [", the original says ", element("b", {}, original || "nothing")] : [];
    const place_ = `Question ${place + 1} of ${this.#cards.length}, ${task.replaceAll("_", " ")}. Expected: `;
    find("expected").replaceChildren(place_, element("b", {}, answers.join(" or ")), ...others);
  }

  /** The next shown question after the current one (step 1) or the one before (step -1), around the ends. */
  beside(step: 1 | -1): number | null {
    const shown = this.shown;
    if (!shown.length) return null;
    const at = this.current === null ? -1 : shown.indexOf(this.current);
    if (at < 0) return step > 0 ? shown[0]! : shown.at(-1)!;
    return shown[(at + step + shown.length) % shown.length]!;
  }

  /** Notes how right each column's answer was, and counts anew. */
  note(place: number, column: number, score: number | null): void {
    const card = this.#cards[place]!;
    card.scores[column] = score;
    const marks = this.labels.map((label, each) => mark(card.scores[each], this.labels.length > 1 ? label : ""));
    card.marks.replaceChildren(...marks);
    this.count();
  }

  forget(places: number[]): void {
    for (const place of places) {
      this.#cards[place]!.scores = [];
      this.#cards[place]!.marks.replaceChildren();
    }
    this.count();
  }

  /** Says how many of those that are shown were answered right, and how many of them were asked. */
  count(): string {
    const parts = this.labels.map((label, column) => {
      const scores = this.shown.map((place) => this.#cards[place]!.scores[column]).filter((each) => typeof each === "number");
      const sum = scores.reduce((total, each) => total + each, 0);
      const words = scores.length ? `${figure(sum)} of ${scores.length} right` : "";
      return words && this.labels.length > 1 ? `${label}: ${words}` : words;
    });
    const text = parts.filter(Boolean).join("; ");
    say(find("score"), text);
    return text;
  }

  #card(question: Question, place: number): Card {
    const marks = element("span", { className: "marks" });
    const picture = element("img", { src: address(question.image), alt: "", loading: "lazy", decoding: "async", width: 96, height: 96 });
    const button = element(
      "button",
      { type: "button", className: "card", "aria-pressed": false },
      picture,
      element("span", { className: "asked" }, question.question),
      marks,
    );
    button.onclick = () => this.picked(place);
    return { question, part: element("li", {}, button), button, marks, scores: [] };
  }

  #filter(): void {
    const shown = new Set(this.shown);
    for (const [place, card] of this.#cards.entries()) card.part.hidden = !shown.has(place);
    this.count();
  }
}

function mark(score: number | null | undefined, label: string): HTMLElement {
  const [kind, sign, words] =
    score === undefined
      ? ["", "", ""]
      : score === null
        ? ["", "–", "not scored"]
        : score === 1
          ? ["good", "✓", "right"]
          : score > 0
            ? ["part", "≈", "partly right"]
            : ["bad", "✕", "wrong"];
  const made = element("span", { className: `mark ${kind}`, title: words && `${label} ${words}`.trim() }, element("span", { "aria-hidden": true }, sign));
  if (words) made.append(element("span", { className: "unseen" }, `${label} ${words}`.trim()));
  return made;
}
