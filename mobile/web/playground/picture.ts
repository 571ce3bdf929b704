/** The image that is asked about: chosen, dropped, pasted, photographed, or a question's own. */
import { element, find, say } from "./dom";

export class Picture {
  blob: Blob | null = null;
  readonly film = find<HTMLVideoElement>("film");
  #shown = find<HTMLImageElement>("shown");
  #empty = find("empty");
  #frame = find("frame");
  #url = "";

  /** chosen: told when somebody brings an image of their own. */
  constructor(private readonly chosen: () => void) {
    const [file, camera] = [find<HTMLInputElement>("file"), find<HTMLInputElement>("camera")];
    find("choose").onclick = () => file.click();
    find("photo").onclick = () => camera.click();
    for (const input of [file, camera])
      input.onchange = () => {
        this.#own(input.files);
        input.value = "";
      };
    document.addEventListener("paste", (event) => this.#own(event.clipboardData?.files, event));
    document.addEventListener("dragover", (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      this.#frame.classList.add("over");
    });
    for (const leaving of ["dragleave", "dragend", "drop"] as const)
      document.addEventListener(leaving, () => this.#frame.classList.remove("over"));
    document.addEventListener("drop", (event) => {
      if (event.dataTransfer?.files.length) this.#own(event.dataTransfer.files, event);
    });
    this.#shown.onerror = () => {
      if (!this.#url) return;
      this.#shown.hidden = true;
      this.#empty.hidden = false;
      say(this.#empty, "This browser shows no preview of it");
    };
  }

  /** Shows an image; words: what it is, for those who do not see it. */
  set(blob: Blob, words: string): void {
    this.blob = blob;
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.#url = URL.createObjectURL(blob);
    this.#shown.src = this.#url;
    this.#shown.alt = words;
    this.#shown.hidden = false;
    this.#empty.hidden = true;
    this.film.hidden = true;
  }

  /** Shows the camera instead. */
  live(): void {
    this.film.hidden = false;
    this.#shown.hidden = true;
    this.#empty.hidden = true;
  }

  /** Keeps the camera's last frame as the image. */
  async still(): Promise<void> {
    const { videoWidth: width, videoHeight: height } = this.film;
    if (!width || !height) return;
    const canvas = element("canvas", { width, height });
    canvas.getContext("2d")?.drawImage(this.film, 0, 0);
    const blob = await new Promise<Blob | null>((done) => canvas.toBlob(done, "image/png"));
    if (blob) this.set(blob, "The last frame of the film");
  }

  #own(files: FileList | null | undefined, event?: Event): void {
    const file = [...(files ?? [])].find((each) => each.type.startsWith("image/")) ?? files?.[0];
    if (!file) return;
    event?.preventDefault();
    this.set(file, `Your image, ${file.name}`);
    say(find("source"), file.name);
    this.chosen();
  }
}
