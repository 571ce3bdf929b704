/** Sessions of ONNX Runtime from a bundle's files, and its errors as ours. */
import type { InferenceSession } from "onnxruntime-web";
import { TapeoutError } from "../errors";
import type { Files, Manifest } from "../manifest";
import type { Runtime } from "./runtime";

/** The session of a part ("encoder" or "decoder"). cached: prefix of the outputs that stay where the backend computes.
 *
 * The files' bytes are given up when the session is there: it holds the weights in the runtime's memory. Throws
 * TapeoutError "memory" or "runtime", and what Files throws.
 */
export async function openSession(
  runtime: Runtime,
  manifest: Manifest,
  files: Files,
  part: string,
  cached?: string,
): Promise<InferenceSession> {
  const path = manifest.model.files[part];
  if (!path) throw new TapeoutError("manifest", `manifest.json names no file for the ${part}`, "Build the bundle again.");
  const data = `${path}.data`;
  const external = manifest.files.some((file) => file.path === data) ? [{ path: data, data: await files.read(data) }] : [];
  const outputs = Object.keys(manifest.model.functions[part]?.outputs ?? {});
  const options: InferenceSession.SessionOptions = {
    executionProviders: [runtime.backend],
    graphOptimizationLevel: "all",
    logSeverityLevel: 3,
    externalData: external,
    extra: { ...manifest.model.session_options }, // "session.…" -> value
  };
  if (runtime.backend === "webgpu" && cached) {
    const kept = outputs.filter((name) => name.startsWith(cached));
    options.preferredOutputLocation = Object.fromEntries(kept.map((name) => [name, "gpu-buffer" as const]));
  }
  const model = await files.read(path);
  try {
    return await runtime.ort.InferenceSession.create(model, options);
  } catch (cause) {
    throw runtimeError(cause, `ONNX Runtime cannot load ${path}`);
  }
}

/** What the runtime threw, as "memory" where it was about an allocation, else as "runtime". */
export function runtimeError(cause: unknown, what: string): TapeoutError {
  const text = cause instanceof Error ? `${cause.name}: ${cause.message}` : String(cause);
  const hint = "Close other tabs, or open the model with memory: \"low\".";
  if (EXHAUSTED.test(text)) return TapeoutError.from(cause, "memory", what, hint);
  return TapeoutError.from(cause, "runtime", what, "Open the model again; report it with this message if it stays.");
}

const EXHAUSTED = /bad_alloc|out of (device )?memory|\bOOM\b|enlarge memory|allocat|RangeError|VK_ERROR_OUT_OF/i;
