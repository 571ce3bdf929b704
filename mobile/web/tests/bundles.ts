/** Bundles for tests, signed by keys that are made here, as stages/release/signing writes them. */
import { createHash, generateKeyPairSync, sign as signBytes, type KeyObject } from "node:crypto";

export type Contents = Record<string, Uint8Array<ArrayBuffer>>;

const text = (value: string): Uint8Array<ArrayBuffer> => new TextEncoder().encode(value);
export const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");
const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString("base64");

/** A pair of keys. pem, id, hint: as src/verify/keys.ts has them. */
export class Signer {
  readonly pem: string;
  readonly id: string;
  readonly hint: string;
  readonly #private: KeyObject;

  constructor(readonly kind: "p256" | "ed25519" = "p256") {
    const pair = kind === "p256" ? generateKeyPairSync("ec", { namedCurve: "P-256" }) : generateKeyPairSync("ed25519");
    this.#private = pair.privateKey;
    this.pem = String(pair.publicKey.export({ type: "spki", format: "pem" }));
    this.hint = sha256(text(this.pem));
    const raw = Buffer.from(this.pem.replace(/-----[^-]*-----|\s/g, ""), "base64").subarray(-32).toString("hex");
    const [type, value, scheme] = kind === "p256" ? ["ecdsa", this.pem, "ecdsa-sha2-nistp256"] : ["ed25519", raw, "ed25519"];
    this.id = sha256(text(`{"keytype":"${type}","keyval":{"public":"${value}"},"scheme":"${scheme}"}`));
  }

  /** high: the other of P-256's two forms. */
  sign(data: Uint8Array, high = false): Uint8Array {
    if (this.kind === "ed25519") return signBytes(null, data, this.#private);
    for (;;) {
      const raw = signBytes("sha256", data, { key: this.#private, dsaEncoding: "ieee-p1363" });
      if (isHigh(raw) === high) return derOf(raw);
    }
  }
}

const ORDER = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551n;
const isHigh = (raw: Uint8Array): boolean => BigInt(`0x${Buffer.from(raw.subarray(32)).toString("hex")}`) > ORDER / 2n;

function derOf(raw: Uint8Array): Uint8Array {
  const integer = (bytes: Uint8Array): number[] => {
    const digits = [...bytes.subarray(bytes.findIndex((each) => each !== 0))];
    if (digits[0]! & 0x80) digits.unshift(0);
    return [2, digits.length, ...digits];
  };
  const body = [...integer(raw.subarray(0, 32)), ...integer(raw.subarray(32))];
  return Uint8Array.from([0x30, body.length, ...body]);
}

export interface Made {
  manifest: Uint8Array<ArrayBuffer>;
  digest: string;
  /** By path from the folder that holds the bundle: "b/manifest.json", "b.model.sig". */
  contents: Contents;
  size: number;
}

export interface Recipe {
  version?: string;
  seed?: number;
  weights?: number;
  signers?: Signer[];
  /** Sidecars that are written. */
  beside?: ("provenance" | "signature")[];
  /** Members of the manifest that are others. */
  values?: Record<string, unknown>;
  high?: boolean;
}

/** A signed bundle of made-up weights in the folder b. */
export function made({ version = "1.0.0", seed = 1, weights = 200_000, signers = [], beside = ["provenance", "signature"], values = {}, high = false }: Recipe = {}): Made {
  const files: Contents = {
    "MODEL_CARD.md": text("# A model\n"),
    "decoder.onnx": text("graph of the decoder"),
    "decoder.onnx.data": randomBytes(weights, seed),
    "encoder.onnx": text("graph of the encoder"),
    "empty.txt": new Uint8Array(0),
    "self_test/0 ä.png": randomBytes(3000, 7),
    "sbom.cdx.json": text("{}"),
  };
  const listed = Object.entries(files).map(([path, bytes]) => ({ path, size: bytes.length, sha256: sha256(bytes) }));
  const value = {
    manifest_version: 2, schema: "urn:tapeout:manifest:2", name: "demo", version, device: { name: "web-wasm" }, runtime: "onnxruntime",
    model: { runtime: "onnxruntime", files: { encoder: "encoder.onnx", decoder: "decoder.onnx" } }, weights: [], validation: {},
    licence: { weights: null, files: [] }, documents: { model_card: "MODEL_CARD.md", bill_of_materials: "sbom.cdx.json" },
    self_test: [{ image: "self_test/0 ä.png", question: "how many?", answer: "two" }], files: listed, ...values,
  };
  const manifest = text(`${JSON.stringify(value, null, 2)}\n`);
  const digest = sha256(manifest);
  const contents: Contents = { "b/manifest.json": manifest };
  for (const [path, bytes] of Object.entries(files)) contents[`b/${path}`] = bytes;
  const model = signers.find((each) => each.kind === "p256");
  if (beside.includes("provenance") && signers.length) contents["b.provenance.json"] = envelope(text(JSON.stringify(statement(digest, value))), signers, high);
  if (beside.includes("signature") && model) contents["b.model.sig"] = modelSignature([...listed, { path: "manifest.json", sha256: digest }], model);
  return { manifest, digest, contents, size: listed.reduce((sum, file) => sum + file.size, 0) };
}

const IN_TOTO = "application/vnd.in-toto+json";
const pae = (payload: Uint8Array): Uint8Array => Buffer.concat([text(`DSSEv1 ${IN_TOTO.length} ${IN_TOTO} ${payload.length} `), payload]);

export function envelope(payload: Uint8Array, signers: Signer[], high = false): Uint8Array<ArrayBuffer> {
  const signatures = signers.map((each) => ({ keyid: each.id, sig: base64(each.sign(pae(payload), high)) }));
  return text(JSON.stringify({ payload: base64(payload), payloadType: IN_TOTO, signatures }));
}

export function statement(digest: string, { name, version, device }: { name: string; version: string; device: { name: string } }): object {
  return {
    _type: "https://in-toto.io/Statement/v1",
    subject: [{ name: "manifest.json", digest: { sha256: digest } }],
    predicateType: "https://slsa.dev/provenance/v1",
    predicate: {
      buildDefinition: {
        buildType: "urn:tapeout:build:1",
        externalParameters: { name, version, device: device.name, overrides: [], config_dirs: [] },
        resolvedDependencies: [{ name: "source", digest: { gitCommit: "0".repeat(40) }, annotations: { dirty: false, changed: [] } }],
      },
      runDetails: { builder: { id: "urn:tapeout:builder:local" }, byproducts: [{ name: "bundle", digest: { sha256: digest } }] },
    },
  };
}

export function modelSignature(files: { path: string; sha256: string }[], signer: Signer, changes: object = {}): Uint8Array<ArrayBuffer> {
  const resources = files.map(({ path, sha256: digest }) => ({ name: path, algorithm: "sha256", digest }));
  const root = sha256(Buffer.concat(resources.map((each) => Buffer.from(each.digest, "hex"))));
  const payload = text(
    JSON.stringify({
      _type: "https://in-toto.io/Statement/v1",
      subject: [{ name: "demo", digest: { sha256: root } }],
      predicateType: "https://model_signing/signature/v1.0",
      predicate: { serialization: { method: "files", hash_type: "sha256", allow_symlinks: false, ignore_paths: [] }, resources },
      ...changes,
    }),
  );
  return text(
    JSON.stringify({
      mediaType: "application/vnd.dev.sigstore.bundle.v0.3+json",
      verificationMaterial: { publicKey: { hint: signer.hint }, tlogEntries: [] },
      dsseEnvelope: { payload: base64(payload), payloadType: IN_TOTO, signatures: [{ sig: base64(signer.sign(pae(payload))), keyid: "" }] },
    }),
  );
}

/** Bytes that look random, the same each time (xorshift32). */
export function randomBytes(size: number, seed: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(size);
  let state = seed * 2654435761 || 1;
  for (let place = 0; place < size; place++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    bytes[place] = state;
  }
  return bytes;
}

/** The bytes with one bit flipped. */
export function flipped(bytes: Uint8Array, place = bytes.length >> 1): Uint8Array<ArrayBuffer> {
  const copy = Uint8Array.from(bytes);
  copy[place]! ^= 0x01;
  return copy;
}
