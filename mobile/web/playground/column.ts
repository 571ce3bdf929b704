/** One bundle: opened, asked, and what it answered, with its figures. */
import { type Model, type Result, TapeoutError, type TapeoutEvent, open } from "../src/index";
import { pieces } from "./differences";
import { element, say } from "./dom";
import { Figures } from "./figures";
import { score } from "./score";
import { type Offer, type Question, address } from "./site";
import { bytes, counted, duration, joined } from "./words";

const WARM_UP = "describe the image";

/** What a code of the SDK means to somebody who looks at this page. */
const TROUBLE: Record<string, string> = {
  unsupported: "This browser cannot run the bundle",
  network: "The bundle could not be fetched",
  manifest: "The bundle's manifest is none",
  signature: "The bundle is not the one that this page was made for",
  integrity: "A file of the bundle is damaged",
  rollback: "The server has an older version than the one here",
  storage: "There is no room to keep the bundle",
  self_test: "The bundle answers its own questions wrong in this browser",
  image: "This is not an image that can be read",
  prompt: "This question cannot be asked",
  memory: "There is not enough memory",
  runtime: "The runtime failed",
  closed: "The model was closed",
};

export class Column {
  readonly part: HTMLElement;
  model: Model | null = null;
  text = "";
  #answer = element("p", { className: "answer" });
  #verdict = element("p", { className: "verdict" });
  #state = element("p", { className: "state" });
  #progress = element("progress", { "aria-label": "Download" });
  #said = element("div", { className: "said" });
  #trouble = element("div", { className: "trouble", role: "alert" });
  #badges = element("ul", { className: "badges", "aria-label": "About this bundle" });
  #retry = element("button", { type: "button" }, "Try again");
  #offline = false;
  readonly figures = new Figures();

  constructor(readonly offer: Offer) {
    const words = `${offer.title}, ${offer.name} ${offer.version}, ${joined(bytes(offer.size))}`;
    this.part = element(
      "article",
      { "aria-label": offer.label },
      element("h3", {}, offer.label, " ", element("small", {}, words)),
      this.#badges,
      this.#said,
      this.figures.part,
    );
    this.#said.append(this.#answer, this.#verdict, this.#trouble);
    this.#wait(false);
    say(this.#state, "Waiting");
  }

  /** Downloads, verifies and opens the bundle; what goes wrong is shown, with a button that tries again.
   *
   * image: it is asked about once, unseen: the first answer compiles and allocates, and no figure is to hold that. */
  async open(image: Blob | null, retried: () => void): Promise<void> {
    this.#trouble.replaceChildren();
    delete this.#trouble.dataset["code"];
    this.#badges.replaceChildren();
    this.part.classList.remove("broken");
    this.#offline = false;
    say(this.#state, "Opening");
    this.#wait(true);
    try {
      const model = await open(address(this.offer.url), {
        digest: this.offer.digest,
        assets: address("sdk/"),
        onEvent: (event) => this.#told(event),
      });
      if (image) await model.ask(image.slice(0, image.size, image.type), WARM_UP).result.catch(() => null); // what is wrong, a question will say
      this.model = model;
      this.#opened(model);
    } catch (error) {
      say(this.#state, "");
      this.#show(error, retried);
    } finally {
      this.#wait(false);
    }
  }

  /** While a bundle is opened, how far it is stands where the answers will; later what was last done, at the bottom. */
  #wait(busy: boolean): void {
    this.#progress.hidden = !busy;
    this.#progress.removeAttribute("value");
    this.part.toggleAttribute("aria-busy", busy);
    if (busy) this.part.setAttribute("aria-busy", "true");
    (busy ? this.#said : this.part).append(this.#progress, this.#state);
  }

  /** Asks, and shows the answer as it comes. Raises nothing: what goes wrong is shown. Whether it answered. */
  async ask(image: Blob | null, question: string, signal: AbortSignal): Promise<boolean> {
    if (!this.model) return false;
    this.clear();
    this.part.classList.add("writing");
    try {
      const answer = this.model.ask(image, question, { signal });
      for await (const piece of answer) {
        this.text += piece;
        this.#answer.append(piece);
      }
      this.show(await answer.result);
      return true;
    } catch (error) {
      if (error instanceof TapeoutError && error.code === "aborted") say(this.#state, "Stopped");
      else this.#show(error, null);
      return false;
    } finally {
      this.part.classList.remove("writing");
    }
  }

  /** Films: one answer after another, until the signal. */
  async watch(source: HTMLVideoElement, question: string, fps: number, signal: AbortSignal, answered: () => void): Promise<void> {
    if (!this.model) return;
    this.clear();
    const times: number[] = [];
    try {
      for await (const result of this.model.watch(source, question, { fps, signal })) {
        this.show(result);
        times.push(performance.now());
        if (times.length > 10) times.shift();
        const rate = (times.length - 1) / ((times.at(-1)! - times[0]!) / 1000);
        say(this.#state, times.length > 2 ? `${rate.toFixed(1)} answers a second` : "");
        answered();
      }
    } catch (error) {
      if (!(error instanceof TapeoutError && error.code === "aborted")) this.#show(error, null);
    }
  }

  clear(): void {
    this.text = "";
    this.#answer.replaceChildren();
    this.#verdict.replaceChildren();
    this.#trouble.replaceChildren();
    delete this.#trouble.dataset["code"];
    say(this.#state, "");
    this.figures.clear();
  }

  /** Shows a whole answer with its figures. */
  show(result: Result): void {
    this.text = result.text;
    say(this.#answer, result.text || "(no answer)");
    this.figures.show(result.metrics);
    const ends = { end: "", length: "Cut at the most tokens of an answer", context: "Cut: the context is full" };
    say(this.#state, ends[result.stop]);
  }

  /** Marks the words that another column has not said. */
  compare(other: Column | null): void {
    if (!other || !this.text || this.text === other.text) return;
    const marked = pieces(this.text, other.text).flatMap(({ text, same }) => [same ? text : element("mark", {}, text), " "]);
    this.#answer.replaceChildren(...marked.slice(0, -1));
  }

  /** Says whether the answer is right; returns the score, null where it cannot be told. */
  judge(question: Question): number | null {
    const found = score(question.metric, this.text, question.answers);
    const [kind, mark, words] = verdict(found);
    this.#verdict.className = `verdict ${kind}`;
    this.#verdict.replaceChildren(element("span", { className: "sign", "aria-hidden": true }, mark), words);
    return found;
  }

  #told(event: TapeoutEvent): void {
    if (event.type === "progress") {
      this.#progress.max = event.total;
      this.#progress.value = event.loaded;
      say(this.#state, `Downloading, ${joined(bytes(event.loaded))} of ${joined(bytes(event.total))}`);
      if (event.loaded < event.total) return;
      this.#progress.removeAttribute("value");
      say(this.#state, "Verifying and loading");
    } else if (event.type === "offline") {
      this.#offline = true;
    } else if (event.type === "fallback") {
      this.#badge(`${event.to} instead of ${event.from}`, event.reason);
    } else if (event.type === "restored" || event.type === "update_failed") {
      this.#badge("the last good version", event.error.message);
    } else if (event.type === "metrics" && event.scope === "open") {
      const { download_bytes, download_ms, verify_ms, load_ms, self_test_ms, from } = event.metrics;
      const fetched = from === "network" ? `Fetched ${joined(bytes(download_bytes))} in ${joined(duration(download_ms))}. ` : "";
      const tested = self_test_ms ? `, asked its own questions in ${joined(duration(self_test_ms))}` : "";
      const words = `${fetched}Verified in ${joined(duration(verify_ms))}, loaded in ${joined(duration(load_ms))}${tested}.`;
      say(this.#state, words);
      this.figures.opened(words);
      this.part.dataset["from"] = from;
    }
  }

  #opened(model: Model): void {
    const { digest, version, backend, threads } = model.info;
    this.#badge(`verified ${digest.slice(0, 8)}`, `Version ${version}: every file is as its manifest says, and the manifest's sha256 is ${digest}`, "good");
    this.#badge(backend === "wasm" ? `WebAssembly, ${counted(threads, "thread")}` : "WebGPU", "What runs the model");
    if (this.#offline) this.#badge("offline", "The server could not be reached; what is kept in this browser is used", "off");
    else if (this.part.dataset["from"] === "store") this.#badge("kept here", "Nothing had to be fetched: this browser has it");
    this.part.dataset["ready"] = "true";
  }

  #badge(words: string, title: string, kind = ""): void {
    this.#badges.append(element("li", { className: `tag ${kind}`, title }, words));
  }

  #show(error: unknown, retried: (() => void) | null): void {
    const known = TapeoutError.from(error, "runtime");
    const lines = [element("p", {}, element("b", {}, TROUBLE[known.code] ?? "It did not work")), element("p", {}, known.message)];
    if (known.hint) lines.push(element("p", { className: "help" }, known.hint));
    this.#trouble.replaceChildren(...lines);
    this.#trouble.dataset["code"] = known.code;
    this.part.classList.toggle("broken", !this.model);
    if (!retried) return;
    this.#retry.onclick = retried;
    this.#trouble.append(this.#retry);
  }
}

function verdict(found: number | null): [string, string, string] {
  if (found === null) return ["", "", "scored over a whole set only"];
  if (found === 1) return ["good", "✓", "right"];
  return found > 0 ? ["part", "≈", `${Math.round(100 * found)} % right`] : ["bad", "✕", "wrong"];
}
