/** ONNX Runtime's WebAssembly: which of its two builds, with how many threads, and how much memory it holds. */
import type * as Ort from "onnxruntime-web";
import { TapeoutError } from "../errors";
import type { Backend } from "../events";
import type { Manifest } from "../manifest";
import type { RuntimeModule } from "./resident";

export interface Runtime {
  ort: typeof Ort;
  backend: Backend;
  threads: number;
  /** The module under it, where that could be kept (resident.ts); it is there once a session is. */
  module(): RuntimeModule | null;
  /** Bytes of the WebAssembly memory; it never shrinks. */
  memoryBytes(): number;
}

export interface RuntimeOptions {
  backend?: Backend;
  threads?: number;
  assets?: string; // URL of the folder with the .wasm files; where this script lies, if not given
}

/** The backends that this machine has and the bundle was made for, in the bundle's order. Throws "unsupported" if none. */
export async function usableBackends(manifest: Manifest, wanted?: Backend): Promise<Backend[]> {
  if (manifest.runtime !== "onnxruntime")
    throw new TapeoutError("unsupported", `this bundle is for ${manifest.runtime}`, "Build one for web-wasm or web-webgpu.");
  if (!WebAssembly.validate(SIMD))
    throw new TapeoutError("unsupported", "this browser's WebAssembly has no SIMD", "Use a browser of 2023 or later.");
  const providers = manifest.device.execution_providers ?? [];
  const listed = (["webgpu", "wasm"] as const).filter((name) => providers.includes(name));
  if (!listed.length) {
    const found = providers.join(", ") || "no execution provider";
    throw new TapeoutError("unsupported", `the bundle for ${manifest.device.name} lists ${found}; expected webgpu or wasm`, MADE_FOR);
  }
  listed.sort((one, other) => providers.indexOf(one) - providers.indexOf(other));
  const missing: string[] = [];
  const usable: Backend[] = [];
  for (const name of listed) {
    if (wanted && name !== wanted) continue;
    if (name === "webgpu" && !(await hasWebGpu())) missing.push("this browser gives no WebGPU adapter");
    else usable.push(name);
  }
  if (!usable.length) {
    const why = missing[0] ?? `the bundle for ${manifest.device.name} lists ${listed.join(", ")}, and ${wanted} was asked for`;
    throw new TapeoutError("unsupported", why, MADE_FOR);
  }
  return usable;
}

const MADE_FOR = "Give the URL of a bundle for web-wasm, too: the first that works is used.";

/** Loads the runtime's build for a backend. With its first session it starts, once for all that come later: their `threads`
 * are then the first one's, and Runtime.threads says so. Throws TapeoutError "unsupported" where it cannot be loaded. */
export async function loadRuntime(backend: Backend, options: RuntimeOptions = {}): Promise<Runtime> {
  let loading = loaded.get(backend);
  if (!loading || !(await loading).memoryBytes()) {
    loaded.set(backend, (loading = load(backend, options)));
    loading.catch(() => loaded.delete(backend)); // it may be had the next time
  }
  return loading;
}

const here: string = import.meta.url; // by a name: bundlers take `new URL("…", import.meta.url)` for a file to be packed
const MODULE = Symbol.for("tapeout.ort-module"); // static/ort-module.mjs
const loaded = new Map<Backend, Promise<Runtime>>();

async function load(backend: Backend, options: RuntimeOptions): Promise<Runtime> {
  const memories = watchMemories();
  const ort = await (backend === "webgpu" ? import("onnxruntime-web/webgpu") : import("onnxruntime-web/wasm")).catch((cause: unknown) => {
    throw TapeoutError.from(cause, "unsupported", `the runtime for ${backend} cannot be loaded`, "Serve all files of dist/.");
  });
  const threads = options.threads ?? 1;
  ort.env.logLevel = "error"; // what it warns of is about speed, which nobody can act on here
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.proxy = false; // this is the worker
  const assets = options.assets ?? (typeof process === "undefined" ? new URL("./", here).href : null);
  const kept = backend === "wasm" && assets !== null && (threads === 1 || new URL(assets).origin === location.origin);
  if (assets) ort.env.wasm.wasmPaths = kept ? { mjs: `${assets}ort-module.mjs`, wasm: `${assets}ort-wasm-simd-threaded.wasm` } : assets;
  return {
    ort,
    backend,
    threads,
    module: () => (kept ? ((globalThis as Record<symbol, unknown>)[MODULE] as RuntimeModule | undefined) ?? null : null),
    memoryBytes: () => memories.reduce((sum, memory) => sum + memory.buffer.byteLength, 0),
  };
}

/** How many threads a bundle is run with, if the caller does not say: one where SharedArrayBuffer may not be used, and for small
 * weights, whose products are over before a second thread has begun (1.5 M parameters: 0.3 ms a token with one, 0.4 to 0.7
 * with two); otherwise one a core, up to four. */
export function threadsFor(manifest: Manifest, wanted?: number): number {
  if (!globalThis.crossOriginIsolated) return 1;
  if (wanted) return Math.max(1, Math.floor(wanted));
  return isSmall(manifest) ? 1 : Math.min(4, navigator.hardwareConcurrency);
}

/** Whether a run takes so little that what surrounds it counts. */
export function isSmall(manifest: Manifest): boolean {
  return manifest.files.reduce((sum, { path, size }) => sum + (WEIGHTS.test(path) ? size : 0), 0) < SMALL_BYTES;
}

const WEIGHTS = /\.(onnx|onnx\.data|ort)$/;
const SMALL_BYTES = 32 * 2 ** 20;

export async function hasWebGpu(): Promise<boolean> {
  const gpu = (globalThis.navigator as Navigator | undefined)?.gpu;
  if (!gpu) return false;
  try {
    return (await gpu.requestAdapter({ powerPreference: "high-performance" })) !== null;
  } catch {
    return false; // some browsers reject where others give null
  }
}

/** The runtime makes its memory itself and does not show it: note each that is made from now on. */
function watchMemories(): WebAssembly.Memory[] {
  const memories: WebAssembly.Memory[] = [];
  WebAssembly.Memory = new Proxy(WebAssembly.Memory, {
    construct(target, [descriptor]: [WebAssembly.MemoryDescriptor]) {
      const memory = new target(descriptor);
      memories.push(memory);
      return memory;
    },
  });
  return memories;
}

/** (module (func (result v128) i32.const 0 i8x16.splat)) */
const SIMD = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11,
]);
