/** manifest.json of a bundle, as stages/release/manifest.schema.json (version 2) describes it: what this package reads. */
export interface Manifest {
  manifest_version: 2;
  name: string;
  version: string;
  device: { name: string; title?: string; execution_providers?: string[] | null };
  runtime: "coreml" | "onnxruntime";
  model: ModelDescription;
  tokenizer?: string;
  preprocessing?: Preprocessing;
  validation?: Record<string, unknown>;
  self_test: { image: string | null; question: string; answer: string }[];
  files: { path: string; size: number; sha256: string }[];
}

export interface ModelDescription {
  runtime: "coreml" | "onnxruntime";
  /** "encoder" and "decoder" -> file */
  files: Record<string, string>;
  functions: Record<string, FunctionDescription>;
  session_options?: Record<string, string>;
  context: number;
  hidden: number;
  layers: number;
  kv_heads: number;
  head_dim: number;
  image_token_id?: number | null;
  image_tokens?: number;
  /** tokens that the decoder takes at once; null: any number */
  prefill_chunk?: number | null;
}

export interface FunctionDescription {
  file: string;
  inputs: Record<string, ValueDescription>;
  outputs: Record<string, ValueDescription>;
}

export interface ValueDescription {
  shape: (number | string)[];
  dtype: string;
  optional?: boolean;
}

export interface Preprocessing {
  image_size: number;
  aspect: "stretch" | "crop" | "pad";
  resample?: "bilinear" | "bicubic";
  mean: number[];
  std: number[];
  prompt_template: string;
  image_token?: string;
  end_token: string;
  max_new_tokens: number;
}

/** The files of a bundle, each of which was checked against the manifest when its bytes are returned. */
export interface Files {
  /** Throws TapeoutError "integrity" where the bytes are not those of the manifest, "storage" where they are gone. */
  read(path: string): Promise<Uint8Array<ArrayBuffer>>;
}
