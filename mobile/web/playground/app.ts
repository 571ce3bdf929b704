/** The playground: an image, a question, and what one bundle or several answer, one after the other. */
import { startCamera, stopCamera } from "./camera";
import { Cards } from "./cards";
import { Column } from "./column";
import { element, find, say } from "./dom";
import { keep, keepForWebgpu } from "./offline";
import { Picture } from "./picture";
import { type Site, address, readSite } from "./site";
import { Turns } from "./turns";

const TOLD = 3000; // ms between two answers of a film that are read out

class Playground {
  #columns: Column[];
  #cards: Cards;
  #picture: Picture;
  #question = find<HTMLInputElement>("question");
  #turns = new Turns((busy) => this.#busy(busy));
  #filming = false;
  #picked: number | null = null; // the question of the set, while image and words are its own

  constructor(site: Site) {
    this.#columns = site.bundles.map((offer) => new Column(offer));
    find("columns").append(...this.#columns.map((column) => column.part));
    find("columns").dataset["count"] = String(this.#columns.length);
    this.#cards = new Cards(
      site,
      site.bundles.map((offer) => offer.label),
      (place) => void this.#askPlace(place),
    );
    this.#picture = new Picture(() => {
      this.#own();
      this.#turns.stop();
      this.#question.focus();
      this.#question.select();
    });
    find<HTMLFormElement>("form").onsubmit = (event) => {
      event.preventDefault();
      void (this.#filming ? this.#film() : this.#ask());
    };
    this.#question.oninput = () => this.#own();
    find("stop").onclick = () => this.#turns.stop();
    find("previous").onclick = () => this.#step(-1);
    find("next").onclick = () => this.#step(1);
    find("run").onclick = () => void this.#run();
    find("filming").onclick = () => {
      if (this.#filming) this.#turns.stop();
      else void this.#film();
    };
    find("rate").onchange = () => {
      if (this.#filming) void this.#film();
    };
  }

  /** Shows the first question, and opens the bundles, one after the other so that their times are their own. */
  async start(): Promise<void> {
    const first = this.#cards.beside(1);
    if (first === null) this.#question.value = "describe the image";
    else await this.#show(first);
    for (const column of this.#columns) await this.#open(column);
    say(find("told"), this.#ready ? "Ready" : "");
  }

  get #ready(): boolean {
    return this.#columns.some((column) => column.model);
  }

  async #open(column: Column): Promise<void> {
    await column.open(this.#picture.blob, () => void this.#open(column));
    if (column.model?.info.backend === "webgpu") void keepForWebgpu();
    this.#busy(this.#turns.busy);
  }

  /** Asks what stands in the box about the image that is shown. */
  async #ask(): Promise<void> {
    const place = this.#picked;
    await this.#turns.take(async (signal) => {
      await this.#each(place, signal);
      if (!signal.aborted) say(find("told"), this.#words());
    });
  }

  async #askPlace(place: number): Promise<void> {
    find("form").scrollIntoView({ block: "nearest" });
    await this.#turns.take(async (signal) => {
      await this.#show(place);
      if (!this.#ready) return;
      await this.#each(place, signal);
      if (!signal.aborted) say(find("told"), this.#words());
    });
  }

  #step(by: 1 | -1): void {
    const place = this.#cards.beside(by);
    if (place !== null) void this.#askPlace(place);
  }

  /** Asks every question that the filter shows, and counts. */
  async #run(): Promise<void> {
    const places = this.#cards.shown;
    this.#cards.forget(places);
    await this.#turns.take(async (signal) => {
      for (const place of places) {
        if (signal.aborted) break;
        await this.#show(place);
        await this.#each(place, signal);
      }
      say(find("told"), this.#cards.count());
    });
  }

  /** Has one column after the other answer, so that no two share the processor, and compares. */
  async #each(place: number | null, signal: AbortSignal): Promise<void> {
    const { blob } = this.#picture;
    const question = this.#question.value;
    for (const column of this.#columns) if (column.model) column.clear();
    const answered: Column[] = [];
    for (const [number, column] of this.#columns.entries()) {
      if (signal.aborted) return;
      if (!(await column.ask(blob, question, signal))) continue;
      answered.push(column);
      if (place !== null) this.#cards.note(place, number, column.judge(this.#cards.question(place)));
    }
    const [first, ...others] = answered;
    for (const column of others) {
      column.compare(first!);
      column.figures.compare(first!.figures, first!.offer.label);
    }
    first?.compare(others.find((column) => column.text !== first.text) ?? null);
  }

  /** What was answered, to be read out once. */
  #words(): string {
    const said = this.#columns.filter((column) => column.model && column.text);
    return said.map((column) => (said.length > 1 ? `${column.offer.label}: ${column.text}` : column.text)).join(". ");
  }

  async #show(place: number): Promise<void> {
    const { image, question } = this.#cards.question(place);
    this.#picked = place;
    this.#cards.select(place);
    this.#question.value = question;
    for (const column of this.#columns) if (column.model) column.clear();
    try {
      const response = await fetch(address(image));
      if (!response.ok) throw new Error(`the server answered ${response.status}`);
      this.#picture.set(await response.blob(), `The image of the question: ${question}`);
      say(find("source"), "or drop or paste one, anywhere on this page");
      say(find("trouble"), "");
    } catch (error) {
      say(find("trouble"), `${image} could not be fetched: ${error instanceof Error ? error.message : String(error)}`);
    }
  }

  #own(): void {
    this.#picked = null;
    this.#cards.select(null);
    say(find("trouble"), "");
  }

  async #film(): Promise<void> {
    const fps = Number(find<HTMLSelectElement>("rate").value);
    let told = 0;
    await this.#turns.take(async (signal) => {
      const { film } = this.#picture;
      try {
        say(find("trouble"), "");
        await startCamera(film);
      } catch (error) {
        say(find("trouble"), error instanceof Error ? error.message : String(error));
        return;
      }
      this.#own();
      this.#filming = true;
      this.#picture.live();
      this.#busy(true);
      const answered = (): void => {
        if (performance.now() - told < TOLD) return;
        told = performance.now();
        say(find("told"), this.#words());
      };
      try {
        const question = this.#question.value || "describe the image";
        await Promise.all(this.#columns.map((column) => column.watch(film, question, fps, signal, answered)));
      } finally {
        this.#filming = false;
        await this.#picture.still();
        stopCamera(film);
      }
    });
  }

  /** Shows Stop for Ask while something runs; the focus stays where the hand is. */
  #busy(busy: boolean): void {
    const [ask, stop, filming] = [find<HTMLButtonElement>("ask"), find<HTMLButtonElement>("stop"), find("filming")];
    const held = document.activeElement === ask || document.activeElement === stop;
    ask.hidden = busy;
    stop.hidden = !busy;
    ask.disabled = !this.#ready;
    find<HTMLButtonElement>("run").disabled = !this.#ready; // while it runs too it keeps the focus, and begins anew
    find<HTMLButtonElement>("filming").disabled = !this.#ready;
    find("rate").hidden = !(this.#filming && busy);
    filming.classList.toggle("on", this.#filming && busy);
    say(filming, this.#filming && busy ? "Stop filming" : "Film");
    if (held) (busy ? stop : ask).focus();
  }
}

async function start(): Promise<void> {
  const keeping = keep();
  try {
    const playground = new Playground(await readSite());
    await playground.start();
  } catch (error) {
    const words = `The page's own files could not be read: ${error instanceof Error ? error.message : String(error)}`;
    find("columns").append(element("p", { role: "alert", className: "trouble" }, words));
  }
  if (await keeping) say(find("kept"), "It is kept in this browser, and opens without the server.");
  document.documentElement.dataset["kept"] = String(await keeping);
}

void start();
