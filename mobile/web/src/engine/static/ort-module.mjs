// ONNX Runtime's module, started as onnxruntime-web starts it, and kept where src/engine/resident.ts finds it.
import start from "./ort-wasm-simd-threaded.mjs";

export default async (settings) => {
  const module = await start(settings);
  globalThis[Symbol.for("tapeout.ort-module")] = module;
  return module;
};
