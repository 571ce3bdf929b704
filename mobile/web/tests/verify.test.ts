/** What is taken for a manifest, and for the signature of a trusted key. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { TapeoutError, type ErrorCode } from "../src/errors";
import { hasOneForm, readKeys, verifies } from "../src/verify/keys";
import { readManifest } from "../src/verify/manifest";
import { Hasher, sha256Of } from "../src/verify/sha256";
import { checkOrigin, readTrust, type Sidecars } from "../src/verify/signature";
import { envelope, flipped, made, modelSignature, randomBytes, sha256, Signer, statement, type Made, type Recipe } from "./bundles";

const signer = new Signer();
const other = new Signer();
const edwards = new Signer("ed25519");
const bytesOf = (text: string): Uint8Array<ArrayBuffer> => new TextEncoder().encode(text);

async function refused(work: Promise<unknown>, code: ErrorCode, saying = /./): Promise<void> {
  await assert.rejects(work, (error) => {
    assert.ok(error instanceof TapeoutError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, saying);
    return true;
  });
}

const sidecars = ({ contents }: Made): Sidecars => ({
  provenance: contents["b.provenance.json"] ?? null,
  signature: contents["b.model.sig"] ?? null,
});

async function check(bundle: Made, keys: string[], changes: Partial<Sidecars> = {}): Promise<void> {
  const manifest = await readManifest(bundle.manifest, "b/manifest.json");
  await checkOrigin(manifest, { ...sidecars(bundle), ...changes }, await readTrust(keys, undefined), "b");
}

test("what Python has signed is right, by either key and in both sidecars", async () => {
  const found = JSON.parse(readFileSync("tests/data/signed.json", "utf8"));
  const manifest = await readManifest(bytesOf(found.manifest), "manifest.json");
  assert.equal(manifest.digest, found.digest);
  const pems: string[] = found.keys.map((key: { pem: string }) => key.pem);
  const keys = await readKeys(pems);
  assert.deepEqual(keys.map((key) => [key.kind, key.id]), found.keys.map((key: { kind: string; id: string }) => [key.kind, key.id]));
  const beside = { provenance: bytesOf(found.provenance), signature: bytesOf(found.signature) };
  await checkOrigin(manifest, beside, await readTrust(pems, undefined), "b");
  await checkOrigin(manifest, beside, await readTrust(pems.slice(0, 1), undefined), "b");
  await checkOrigin(manifest, { ...beside, signature: null }, await readTrust(pems.slice(1), undefined), "b");
  await refused(checkOrigin(manifest, beside, await readTrust([signer.pem], undefined), "b"), "signature", /no key that is trusted/);
});

const RIGHT: [string, Recipe, string[]][] = [
  ["both sidecars", { signers: [signer] }, [signer.pem]],
  ["provenance alone", { signers: [signer], beside: ["provenance"] }, [signer.pem]],
  ["model signature alone", { signers: [signer], beside: ["signature"] }, [signer.pem]],
  ["Ed25519", { signers: [edwards] }, [edwards.pem]],
  ["two signers, both trusted", { signers: [signer, edwards] }, [edwards.pem, signer.pem]],
  ["two signers, one trusted", { signers: [signer, other] }, [signer.pem]],
  ["a key that is trusted twice", { signers: [signer] }, [signer.pem, `  ${signer.pem}\n`]],
];
for (const [name, recipe, keys] of RIGHT) test(`signed: ${name}`, () => check(made(recipe), keys));

test("a digest is trusted without a signature, and must be that of the manifest", async () => {
  const bundle = made();
  const manifest = await readManifest(bundle.manifest, "b");
  const nothing = { provenance: null, signature: null };
  await checkOrigin(manifest, nothing, await readTrust(undefined, bundle.digest), "b");
  await refused(checkOrigin(manifest, nothing, await readTrust(undefined, "0".repeat(64)), "b"), "signature", /its digest is/);
  await refused(checkOrigin(manifest, nothing, await readTrust([signer.pem], bundle.digest), "b"), "signature", /nobody signed/);
});

test("somebody must be trusted, by a public key", async () => {
  await refused(readTrust(undefined, undefined), "signature", /nobody is trusted/);
  await refused(readTrust([], undefined), "signature", /nobody is trusted/);
  await refused(readTrust(undefined, "ABC"), "signature", /no sha256/);
  await refused(readTrust(["no key"], undefined), "signature", /no public key/);
  await refused(readTrust([signer.pem.replaceAll("PUBLIC", "PRIVATE")], undefined), "signature", /private/);
  await refused(readTrust([signer.pem.replace("A", "B")], undefined), "signature", /neither|no public key/);
});

const bundle = made({ signers: [signer] });
const provenance = sidecars(bundle).provenance!;
const signature = sidecars(bundle).signature!;
const described = JSON.parse(new TextDecoder().decode(bundle.manifest));
const listed = [...described.files, { path: "manifest.json", sha256: bundle.digest }];
const spaced = bytesOf(JSON.stringify(JSON.parse(new TextDecoder().decode(provenance)), null, 1));
const about = (digest: string, changes: object = {}): Uint8Array<ArrayBuffer> =>
  envelope(bytesOf(JSON.stringify(statement(digest, { ...described, ...changes }))), [signer]);

const WRONG: [string, Partial<Sidecars>, RegExp][] = [
  ["no sidecar", { provenance: null, signature: null }, /nobody signed/],
  ["provenance that is no JSON", { provenance: bytesOf("{") }, /not JSON/],
  ["provenance in another form", { provenance: spaced }, /fewer bytes/],
  ["provenance with a member twice", { provenance: bytesOf(`{"payloadType":"x",${new TextDecoder().decode(provenance).slice(1)}`) }, /twice/],
  ["provenance of another digest", { provenance: about("0".repeat(64)) }, /was changed after/],
  ["provenance of another version", { provenance: about(bundle.digest, { version: "2.0.0" }) }, /another bundle/],
  ["a statement that is none", { provenance: envelope(bytesOf("[]"), [signer]) }, /JSON object/],
  ["a statement of another kind", { provenance: envelope(bytesOf('{"_type":"x"}'), [signer]) }, /_type/],
  ["a high s", { provenance: sidecars(made({ signers: [signer], high: true })).provenance }, /high s/],
  ["provenance by another key, model signature right", { provenance: sidecars(made({ signers: [other] })).provenance }, /no key that is trusted/],
  ["model signature by another key, provenance right", { signature: modelSignature(listed, other) }, /no key that is trusted/],
  ["model signature of other files", { signature: modelSignature(listed.slice(1), signer) }, /MODEL_CARD.md.*was changed, added or removed/],
  ["model signature of more files", { signature: modelSignature([...listed, { path: "z", sha256: "0".repeat(64) }], signer) }, /"z"/],
  ["model signature with a file twice", { signature: modelSignature([...listed, listed[0]], signer) }, /once/],
  ["model signature of another kind", { signature: modelSignature(listed, signer, { predicateType: "x" }) }, /predicate/],
  ["a signature of 17 MiB", { signature: new Uint8Array(17 << 20) }, /more than/],
  ["provenance of 17 MiB", { provenance: new Uint8Array(17 << 20) }, /more than/],
];
for (const [name, changes, saying] of WRONG) test(`refused: ${name}`, () => refused(check(bundle, [signer.pem], changes), "signature", saying));

test("any flipped bit of a sidecar is seen", async () => {
  for (const [name, bytes] of Object.entries({ provenance, signature }))
    for (let place = 0; place < bytes.length; place += 29) await refused(check(bundle, [signer.pem], { [name]: flipped(bytes, place) }), "signature");
});

test("P-256 signatures must be DER in its one form, of both kinds of s", async () => {
  const [key] = await readKeys([signer.pem]);
  const data = bytesOf("what is signed");
  const low = Uint8Array.from(signer.sign(data));
  const high = Uint8Array.from(signer.sign(data, true));
  assert.deepEqual([await verifies(key!, low, data), hasOneForm(key!, low)], [true, true]);
  assert.deepEqual([await verifies(key!, high, data), hasOneForm(key!, high)], [true, false]);
  const wrong = [low.subarray(0, 60), new Uint8Array(0), Uint8Array.from([...low, 0]), Uint8Array.from([0x30, low[1]! + 1, 2, low[3]! + 1, 0, ...low.subarray(4)])];
  for (const each of wrong) assert.equal(await verifies(key!, Uint8Array.from(each), data), false);
  assert.equal(await verifies(key!, low, bytesOf("another")), false);
});

test("Ed25519 in a browser that has none is unsupported, unless P-256 has signed too", async (t) => {
  const real = crypto.subtle.importKey.bind(crypto.subtle);
  t.mock.method(crypto.subtle, "importKey", (...words: Parameters<typeof real>) => {
    const [, , algorithm] = words;
    if ((algorithm as Algorithm).name === "Ed25519") throw new DOMException("Unrecognized name.", "NotSupportedError");
    return real(...words);
  });
  await refused(check(made({ signers: [edwards] }), [edwards.pem]), "unsupported", /Ed25519/);
  await check(made({ signers: [edwards, signer] }), [edwards.pem, signer.pem]);
});

test("the sha256 by pieces is that of the whole", async () => {
  const bytes = randomBytes(100_001, 3);
  const hasher = new Hasher();
  for (let place = 0; place < bytes.length; place += 777) hasher.update(bytes.subarray(place, place + 777));
  assert.equal(hasher.digest(), sha256(bytes));
  assert.equal(await sha256Of(bytes), sha256(bytes));
});

const file = (path: string): object => ({ path, size: 0, sha256: sha256(new Uint8Array(0)) });
const withFiles = (...paths: string[]): Record<string, unknown> => ({ files: [...described.files, ...paths.map(file)] });
const PATHS = [
  "../up", "a/../b", "a//b", "/root", "a/", "./a", "a\\b", "C:/x", "nul", "com1.txt", "a/LPT9", "end.", "end ", "a\u0000b", "a\nb", "a\u202eb",
  "a*", "q?", 'a"', "Decoder.ONNX", "MANIFEST.json", "manifest.json/x", "decoder.onnx/x", "x".repeat(251), "",
];
for (const path of PATHS) test(`no path of a bundle: ${JSON.stringify(path).slice(0, 40)}`, () => refused(readManifest(made({ values: withFiles(path) }).manifest, "b"), "manifest"));

test("names that some file system takes for one are refused", async () => {
  for (const [one, another] of [["\u00e9", "e\u0301"], ["stra\u00dfe", "STRASSE"], ["\u03c3", "\u03c2"], ["a", "A"]])
    await refused(readManifest(made({ values: withFiles(one!, another!) }).manifest, "b"), "manifest", /same file/);
  await readManifest(made({ values: withFiles("a b/c.d-e_f", "..x", "configs/nullable", "\u00e4/\u65e5\u672c") }).manifest, "b");
});

const SHAPES: [string, Record<string, unknown>][] = [
  ["another version of the format", { manifest_version: 3 }],
  ["another schema", { schema: "x" }],
  ["a member that the schema lacks", { extra: 1 }],
  ["a name with a space", { name: "a b" }],
  ["an empty version", { version: "" }],
  ["a version of 129 characters", { version: "1".repeat(129) }],
  ["a device without a name", { device: {} }],
  ["execution providers that are no texts", { device: { name: "web", execution_providers: [1] } }],
  ["another runtime", { runtime: "torch" }],
  ["a model without files", { model: { runtime: "onnxruntime", files: {} } }],
  ["a part that is not listed", { model: { runtime: "onnxruntime", files: { encoder: "other.onnx" } } }],
  ["a part outside", { model: { runtime: "onnxruntime", files: { encoder: "../encoder.onnx" } } }],
  ["a tokenizer that is not listed", { tokenizer: "tokenizer.json" }],
  ["a self-test's image that is not listed", { self_test: [{ image: "no.png", question: "", answer: "" }] }],
  ["nine self-tests", { self_test: Array(9).fill({ image: null, question: "", answer: "" }) }],
  ["a self-test with more members", { self_test: [{ image: null, question: "", answer: "", more: 1 }] }],
  ["a licence that is not listed", { licence: { weights: null, files: ["LICENCE"] } }],
  ["no files", { files: [] }],
  ["a size below zero", { files: [{ path: "a", size: -1, sha256: "0".repeat(64) }] }],
  ["a size with a fraction", { files: [{ path: "a", size: 0.5, sha256: "0".repeat(64) }] }],
  ["a size beyond a tebibyte", { files: [{ path: "a", size: 2 ** 40 + 1, sha256: "0".repeat(64) }] }],
  ["an sha256 in capitals", { files: [{ path: "a", size: 1, sha256: "A".repeat(64) }] }],
  ["weights of no format", { weights: [{ tensors: 1, bytes: 1 }] }],
];
for (const [name, values] of SHAPES) test(`no manifest: ${name}`, () => refused(readManifest(made({ values }).manifest, "b"), "manifest"));

test("a part of the model may be a folder of listed files, and no other name may", async () => {
  const folder = { files: [...described.files, file("encoder.mlpackage/Data/weights.bin")] };
  const model = { runtime: "coreml", files: { encoder: "encoder.mlpackage", decoder: "decoder.onnx" } };
  await readManifest(made({ values: { ...folder, model } }).manifest, "b");
  await readManifest(made({ values: { ...folder, model: { ...model, files: { encoder: "encoder.mlpackage/Data" } } } }).manifest, "b");
  await refused(readManifest(made({ values: { ...folder, model: { ...model, files: { encoder: "encoder.mlpack" } } } }).manifest, "b"), "manifest", /does not list/);
  await refused(readManifest(made({ values: { ...folder, tokenizer: "encoder.mlpackage" } }).manifest, "b"), "manifest", /does not list/);
});

test("no manifest: bytes that are no JSON object with each name once", async () => {
  const text = new TextDecoder().decode(bundle.manifest);
  const wrong = [
    new Uint8Array(0), bytesOf("[]"), bytesOf("null"), bytesOf(`\ufeff${text}`), Uint8Array.from([...bundle.manifest, 0xff]), bytesOf(`${text}x`),
    bytesOf(text.replace('"name": "demo"', '"name": "evil", "name": "demo"')),
    bytesOf(text.replace('"name": "demo"', '"n\\u0061me": "evil", "name": "demo"')),
    bytesOf(text.replace('"validation": {}', '"validation": {"a": [{"b": 1, "c": {}, "b": 2}]}')),
    bytesOf(text.replace('"validation": {}', '"validation": {"a": "\\ud800"}')),
    new Uint8Array((4 << 20) + 1).fill(32),
  ];
  for (const bytes of wrong) await refused(readManifest(bytes, "b"), "manifest");
  const odd = text.replace('"validation": {}', '"validation": {"a": {"b": ":\\"{", "\\\\": "\\\\ud800"}, "b": ["b", "b"], "__proto__": 1}');
  await readManifest(bytesOf(odd), "b");
});
