/** Runs of a decoder whose caches stay in the WebAssembly memory: what a run gives is what the next one takes, by its handle.
 *
 * onnxruntime-web's own interface copies every cache in and out of that memory for each token. This calls the C functions that
 * the interface calls (onnxruntime/wasm/api.cc), of the module that ort-module.mjs keeps. Where that module or one of the
 * functions is missing, `of` gives null, and TensorSteps do the same more slowly.
 */
import type { InferenceSession } from "onnxruntime-web";
import type { ModelDescription } from "../manifest";
import { cachesOf, type Steps } from "./steps";

/** What this needs of the module. Pointers and handles are numbers; 0 is none. */
export interface RuntimeModule {
  HEAPU8: Uint8Array;
  PTR_SIZE: number;
  _malloc(bytes: number): number;
  _free(pointer: number): void;
  lengthBytesUTF8(text: string): number;
  stringToUTF8(text: string, pointer: number, bytes: number): void;
  UTF8ToString(pointer: number): string;
  getValue(pointer: number, type: string): number | bigint;
  setValue(pointer: number, value: number, type: string): void;
  _OrtCreateTensor(type: number, data: number, bytes: number, dims: number, rank: number, location: number): number;
  _OrtReleaseTensor(tensor: number): number;
  _OrtGetTensorData(tensor: number, type: number, data: number, dims: number, rank: number): number;
  _OrtFree(pointer: number): number;
  _OrtRun(session: number, inputNames: number, inputs: number, inputCount: number, outputNames: number, outputCount: number, outputs: number, options: number): number | Promise<number>;
  _OrtGetLastError(code: number, message: number): number;
}

const NEEDED = ["_malloc", "_free", "lengthBytesUTF8", "stringToUTF8", "UTF8ToString", "getValue", "setValue", "_OrtCreateTensor", "_OrtReleaseTensor", "_OrtGetTensorData", "_OrtFree", "_OrtRun", "_OrtGetLastError"] as const;
const FED = ["input_ids", "attention_mask", "logits_to_keep", "image_features"]; // besides the caches
const FLOAT32 = 1; // ONNX's numbers of types
const INT64 = 7;
const CPU = 1; // where a tensor's data lies
const RANK = 4; // the most that a tensor here has

/** Handles of the caches, in the order of `cachesOf`; and of the logits that were handed out last. */
export interface Resident {
  caches: number[];
  logits: number;
}

export class ResidentSteps implements Steps<Resident> {
  private readonly names: string[];
  private readonly outputs: string[];
  private readonly places: { input: number; output: number }[]; // of each cache among the inputs and the outputs
  private readonly unread: number[]; // places of outputs that nobody asks for
  private readonly owned: number[] = []; // pointers
  private readonly tensors: number[] = []; // handles that serve every run
  private readonly inputNames: number;
  private readonly outputNames: number;
  private readonly inputSlots: number;
  private readonly outputSlots: number;
  private readonly dims: number;
  private readonly ids: number; // room for a context of them
  private readonly mask: number;
  private readonly result: number; // four words that the runtime writes to
  private readonly keep: number;
  private readonly token: number;
  private readonly blank: number;

  /** Null where the runtime does not offer what this needs. */
  static of(module: RuntimeModule | null, session: InferenceSession, model: ModelDescription): ResidentSteps | null {
    const handle = (session as unknown as { handler?: { sessionId?: unknown } }).handler?.sessionId;
    if (!module || typeof handle !== "number" || !NEEDED.every((name) => typeof module[name] === "function")) return null;
    if (!(module.HEAPU8 instanceof Uint8Array) || (module.PTR_SIZE !== 4 && module.PTR_SIZE !== 8)) return null;
    const caches = cachesOf(session);
    const known = [...FED, ...caches.map(({ past }) => past)];
    if (!session.inputNames.every((name) => known.includes(name))) return null;
    if (!["logits", ...caches.map(({ present }) => present)].every((name) => session.outputNames.includes(name))) return null;
    return new ResidentSteps(module, handle, session, model);
  }

  private constructor(
    private readonly module: RuntimeModule,
    private readonly handle: number,
    session: InferenceSession,
    private readonly model: ModelDescription,
  ) {
    const pointer = module.PTR_SIZE;
    this.names = [...session.inputNames];
    this.outputs = [...session.outputNames];
    this.places = cachesOf(session).map(({ past, present }) => ({ input: this.names.indexOf(past), output: this.outputs.indexOf(present) }));
    const read = new Set([...this.places.map(({ output }) => output), this.outputs.indexOf("logits")]);
    this.unread = this.outputs.map((_, place) => place).filter((place) => !read.has(place));
    try {
      this.inputNames = this.namesOf(this.names);
      this.outputNames = this.namesOf(this.outputs);
      this.inputSlots = this.room(this.names.length * pointer);
      this.outputSlots = this.room(this.outputs.length * pointer);
      this.dims = this.room(RANK * pointer);
      this.result = this.room(4 * pointer);
      this.ids = this.room(model.context * 8);
      this.mask = this.room(model.context * 8);
      new BigInt64Array(module.HEAPU8.buffer, this.mask, model.context).fill(1n);
      const one = this.room(8);
      new BigInt64Array(module.HEAPU8.buffer, one, 1)[0] = 1n;
      const zeros = this.room(model.hidden * 4);
      new Float32Array(module.HEAPU8.buffer, zeros, model.hidden).fill(0);
      this.keep = this.lasting(INT64, one, 8, [1]);
      this.token = this.lasting(INT64, this.ids, 8, [1, 1]);
      this.blank = this.lasting(FLOAT32, zeros, model.hidden * 4, [1, 1, model.hidden]);
    } catch (cause) {
      this.close();
      throw cause;
    }
  }

  start(): Resident {
    const shape = [1, this.model.kv_heads, 0, this.model.head_dim];
    const held: Resident = { caches: [], logits: 0 };
    try {
      for (let cache = 0; cache < this.places.length; cache++) held.caches.push(this.tensor(FLOAT32, this.result, 0, shape));
    } catch (cause) {
      this.release(held);
      throw cause;
    }
    return held;
  }

  async run(ids: BigInt64Array, rows: Float32Array | null, total: number, held: Resident): Promise<Float32Array> {
    const { module } = this;
    const brief: number[] = []; // handles of this run alone
    const made = (tensor: number): number => (brief.push(tensor), tensor);
    const features = rows ? module._malloc(rows.byteLength) : 0;
    try {
      if (rows && !features) throw new Error("the runtime cannot allocate the visual tokens: out of memory");
      new BigInt64Array(module.HEAPU8.buffer, this.ids, ids.length).set(ids);
      if (rows) new Float32Array(module.HEAPU8.buffer, features, rows.length).set(rows);
      this.names.forEach((name, place) => {
        const given =
          name === "input_ids" ? (ids.length === 1 ? this.token : made(this.tensor(INT64, this.ids, ids.length * 8, [1, ids.length])))
          : name === "attention_mask" ? made(this.tensor(INT64, this.mask, total * 8, [1, total]))
          : name === "logits_to_keep" ? this.keep
          : name === "image_features" ? (rows ? made(this.tensor(FLOAT32, features, rows.byteLength, [1, ids.length, this.model.hidden])) : this.blank)
          : 0;
        this.put(this.inputSlots, place, given);
      });
      this.places.forEach(({ input }, cache) => this.put(this.inputSlots, input, held.caches[cache]!));
      for (let place = 0; place < this.outputs.length; place++) this.put(this.outputSlots, place, 0);
      const failed = await module._OrtRun(this.handle, this.inputNames, this.inputSlots, this.names.length, this.outputNames, this.outputs.length, this.outputSlots, 0);
      if (failed) throw new Error(this.lastError());
      this.places.forEach(({ output }, cache) => {
        module._OrtReleaseTensor(held.caches[cache]!);
        held.caches[cache] = this.get(this.outputSlots, output);
      });
      if (held.logits) module._OrtReleaseTensor(held.logits);
      held.logits = this.get(this.outputSlots, this.outputs.indexOf("logits"));
      for (const place of this.unread) module._OrtReleaseTensor(this.get(this.outputSlots, place));
      return this.lastRow(held.logits);
    } finally {
      for (const tensor of brief) module._OrtReleaseTensor(tensor);
      if (features) module._free(features);
    }
  }

  release(held: Resident): void {
    for (const tensor of [...held.caches, held.logits]) if (tensor) this.module._OrtReleaseTensor(tensor);
    held.caches = [];
    held.logits = 0;
  }

  close(): void {
    for (const tensor of this.tensors.splice(0)) this.module._OrtReleaseTensor(tensor);
    for (const pointer of this.owned.splice(0)) this.module._free(pointer);
  }

  /** The last of logits' rows (1, N, V), in the runtime's memory. */
  private lastRow(logits: number): Float32Array {
    const { module, result } = this;
    const pointer = module.PTR_SIZE;
    if (module._OrtGetTensorData(logits, result, result + pointer, result + 2 * pointer, result + 3 * pointer))
      throw new Error(this.lastError());
    const data = this.get(result, 1);
    const sizes = this.get(result, 2);
    const rows = this.get(sizes, 1);
    const words = this.get(sizes, 2);
    module._OrtFree(sizes);
    return new Float32Array(module.HEAPU8.buffer, data + (rows - 1) * words * 4, words);
  }

  private tensor(type: number, data: number, bytes: number, shape: readonly number[]): number {
    shape.forEach((size, place) => this.put(this.dims, place, size));
    const tensor = this.module._OrtCreateTensor(type, data, bytes, this.dims, shape.length, CPU);
    if (!tensor) throw new Error(this.lastError());
    return tensor;
  }

  private lasting(type: number, data: number, bytes: number, shape: readonly number[]): number {
    const tensor = this.tensor(type, data, bytes, shape);
    this.tensors.push(tensor);
    return tensor;
  }

  private lastError(): string {
    const { module, result } = this;
    module._OrtGetLastError(result, result + module.PTR_SIZE);
    const message = this.get(result, 1);
    return message ? module.UTF8ToString(message) : "the runtime gave no reason";
  }

  private namesOf(names: readonly string[]): number {
    const list = this.room(names.length * this.module.PTR_SIZE);
    names.forEach((name, place) => {
      const bytes = this.module.lengthBytesUTF8(name) + 1;
      const text = this.room(bytes);
      this.module.stringToUTF8(name, text, bytes);
      this.put(list, place, text);
    });
    return list;
  }

  private room(bytes: number): number {
    const pointer = this.module._malloc(Math.max(bytes, 1));
    if (!pointer) throw new Error("the runtime cannot allocate: out of memory");
    this.owned.push(pointer);
    return pointer;
  }

  private put(list: number, place: number, value: number): void {
    this.module.setValue(list + place * this.module.PTR_SIZE, value, this.module.PTR_SIZE === 4 ? "i32" : "i64");
  }

  private get(list: number, place: number): number {
    return Number(this.module.getValue(list + place * this.module.PTR_SIZE, this.module.PTR_SIZE === 4 ? "i32" : "i64"));
  }
}
