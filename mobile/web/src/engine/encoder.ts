/** The encoder: pixels in, visual tokens out; its session may be given back between two images. */
import type { InferenceSession } from "onnxruntime-web";
import { prepare } from "../image/prepare";
import type { Pixels } from "../image/decode";
import type { Preprocessing } from "../manifest";
import type { Runtime } from "./runtime";
import { runtimeError } from "./session";

/** What the decoder sees of an image: its visual tokens (T, D), and what they cost. */
export interface Visual {
  features: Float32Array;
  prepare_ms: number;
  encode_ms: number;
}

export class Encoder {
  private session: InferenceSession | null = null;

  /** load: opens the session. release: give it back after each image. */
  constructor(
    private readonly runtime: Runtime,
    private readonly settings: Preprocessing,
    private readonly load: () => Promise<InferenceSession>,
    private readonly release: boolean,
  ) {}

  async open(): Promise<void> {
    this.session ??= await this.load();
  }

  /** Throws TapeoutError "memory" or "runtime"; "integrity" or "storage" where the session has to be opened anew. */
  async encode(pixels: Pixels): Promise<Visual> {
    const began = performance.now();
    const values = prepare(pixels, this.settings);
    const prepared = performance.now();
    await this.open();
    const size = this.settings.image_size;
    try {
      const image = new this.runtime.ort.Tensor("float32", values, [1, 3, size, size]);
      const { features } = await this.session!.run({ image });
      return { features: features!.data as Float32Array, prepare_ms: prepared - began, encode_ms: performance.now() - prepared };
    } catch (cause) {
      throw runtimeError(cause, "the encoder failed");
    } finally {
      if (this.release) await this.close();
    }
  }

  /** Runs once on a blank image, if the session is there. */
  async warmUp(): Promise<void> {
    const size = this.settings.image_size;
    await this.session?.run({ image: new this.runtime.ort.Tensor("float32", new Float32Array(3 * size * size), [1, 3, size, size]) });
  }

  async close(): Promise<void> {
    const session = this.session;
    this.session = null;
    await session?.release();
  }
}
