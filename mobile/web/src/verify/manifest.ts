import { TapeoutError } from "../errors";
import type { Manifest } from "../manifest";
import { AGAIN, hasJust, isObject, isTexts, member, objectOf, type Json } from "./json";
import { liesInside, wrongPath } from "./paths";
import { sha256Of } from "./sha256";

export const NAME = "manifest.json";
/** Bytes of a manifest. */
export const MAXIMUM = 4 << 20;

/** A manifest that keeps to stages/release/manifest.schema.json. bytes: as they came; digest: their sha256, which is the
 * bundle's; size: bytes of all files together. */
export interface ReadManifest {
  value: Manifest;
  bytes: Uint8Array<ArrayBuffer>;
  digest: string;
  size: number;
}

/** The manifest in the bytes, held against the schema. `where` names them. Throws "manifest" for what is none. */
export async function readManifest(bytes: Uint8Array<ArrayBuffer>, where: string): Promise<ReadManifest> {
  if (bytes.length > MAXIMUM) throw wrong(where, `more than ${MAXIMUM} bytes`);
  const value = objectOf(bytes, where, "manifest");
  check(value, where);
  const manifest = value as unknown as Manifest;
  const size = manifest.files.reduce((sum, file) => sum + file.size, 0);
  return { value: manifest, bytes, digest: await sha256Of(bytes), size };
}

const REQUIRED = [
  "manifest_version", "schema", "name", "version", "device", "runtime", "model", "weights", "validation", "licence",
  "documents", "self_test", "files",
];
const ALLOWED = new Set([...REQUIRED, "precision", "risks", "tokenizer", "preprocessing"]);
const SCHEMA = "urn:tapeout:manifest:2";
const TERABYTE = 2 ** 40;

function check(value: Json, where: string): void {
  const need = (right: boolean, what: string): void => {
    if (!right) throw wrong(where, what);
  };
  const unknown = Object.keys(value).find((name) => !ALLOWED.has(name));
  need(unknown === undefined, `'${plain(unknown ?? "")}' is no member of a manifest`);
  const missing = REQUIRED.find((name) => !Object.hasOwn(value, name));
  need(missing === undefined, `it has no '${missing}'`);
  need(value["manifest_version"] === 2 && value["schema"] === SCHEMA, "expected manifest version 2");
  need(isWord(value["name"]) && isWord(value["version"]), "name and version must be plain words");
  checkDevice(value["device"], need);
  need(isRuntime(value["runtime"]), "runtime must be coreml or onnxruntime");
  const model = value["model"];
  need(isObject(model) && isRuntime(member(model, "runtime")), "model.runtime must be coreml or onnxruntime");
  const parts = member(model, "files");
  need(isObject(parts) && within(Object.keys(parts), 1, 1000) && Object.values(parts).every(isPath), "model.files must name files");
  need(value["risks"] === undefined || Array.isArray(value["risks"]), "risks must be a list");
  need(value["tokenizer"] === undefined || isPath(value["tokenizer"]), "tokenizer must be a path");
  need(value["preprocessing"] === undefined || isObject(value["preprocessing"]), "preprocessing must be an object");
  need(isObject(value["validation"]), "validation must be an object");
  need(isList(value["weights"], 0, 1000, isFormat), "weights must be a list of formats with tensors and bytes");
  const licence = value["licence"];
  need(
    isObject(licence) && hasJust(licence, ["weights", "files"]) && isTextOrNull(licence["weights"]) &&
      isList(licence["files"], 0, 1000, isPath),
    "licence must hold weights and files",
  );
  const documents = value["documents"];
  need(
    isObject(documents) && hasJust(documents, ["model_card", "bill_of_materials"]) && Object.values(documents).every(isPath),
    "documents must be model_card and bill_of_materials",
  );
  need(isList(value["self_test"], 0, 8, isSelfTest), "self_test must be at most 8 questions with their images and answers");
  need(isList(value["files"], 1, 10000, isFile), "files must be a list of path, size and sha256");
  checkNamed(value as unknown as Manifest & Named, need);
}

interface Named {
  licence: { files: string[] };
  documents: Record<string, string>;
}

/** Whatever else the manifest names is a file that it lists; a part of the model may be a folder of such files. */
function checkNamed(manifest: Manifest & Named, need: (right: boolean, what: string) => void): void {
  const paths = manifest.files.map((file) => file.path);
  const bad = wrongPath(paths);
  need(bad === null, bad ?? "");
  const listed = new Set(paths);
  const folders = new Set<string>();
  for (const path of paths) for (let end = path.indexOf("/"); end >= 0; end = path.indexOf("/", end + 1)) folders.add(path.slice(0, end));
  const checkOne = (name: string, place: string, folder = false): void => {
    need(liesInside(name), `${place} is ${JSON.stringify(name)}, which is no path inside the bundle`);
    need(listed.has(name) || (folder && folders.has(name)), `${place} is '${plain(name)}', which it does not list among its files`);
  };
  for (const [part, name] of Object.entries(manifest.model.files)) checkOne(name, `model.files.${plain(part)}`, true);
  if (manifest.tokenizer !== undefined) checkOne(manifest.tokenizer, "tokenizer");
  for (const each of manifest.self_test) if (each.image !== null) checkOne(each.image, "self_test's image");
  for (const name of manifest.licence.files) checkOne(name, "licence.files");
  for (const [document, name] of Object.entries(manifest.documents)) checkOne(name, `documents.${document}`);
}

function checkDevice(device: unknown, need: (right: boolean, what: string) => void): void {
  need(isObject(device) && isWord(member(device, "name")), "device must have a name");
  const title = member(device, "title");
  need(title === undefined || typeof title === "string", "device.title must be text");
  for (const name of ["chip", "minimum_os"])
    need(member(device, name) === undefined || isTextOrNull(member(device, name)), `device.${name} must be text or null`);
  for (const name of ["compute_units", "execution_providers"]) {
    const list = member(device, name);
    need(list === undefined || list === null || (isTexts(list) && list.length <= 100), `device.${name} must be a list of texts`);
  }
}

function isFile(value: unknown): boolean {
  if (!isObject(value) || !hasJust(value, ["path", "size", "sha256"])) return false;
  const { path, size, sha256 } = value;
  return isPath(path) && isCount(size) && size <= TERABYTE && typeof sha256 === "string" && /^[0-9a-f]{64}$/.test(sha256);
}

function isSelfTest(value: unknown): boolean {
  if (!isObject(value) || !hasJust(value, ["image", "question", "answer"])) return false;
  return (value["image"] === null || isPath(value["image"])) && isText(value["question"], 4096) && isText(value["answer"], 4096);
}

function isFormat(value: unknown): boolean {
  return isObject(value) && typeof member(value, "format") === "string" && isCount(member(value, "tensors")) && isCount(member(value, "bytes"));
}

function isList(value: unknown, least: number, most: number, each: (item: unknown) => boolean): boolean {
  return Array.isArray(value) && within(value, least, most) && value.every(each);
}

function within(list: unknown[], least: number, most: number): boolean {
  return list.length >= least && list.length <= most;
}

const isWord = (value: unknown): boolean => typeof value === "string" && /^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$/.test(value);
const isRuntime = (value: unknown): boolean => value === "coreml" || value === "onnxruntime";
const isText = (value: unknown, most: number): boolean => typeof value === "string" && [...value].length <= most;
const isPath = (value: unknown): boolean => isText(value, 250) && value !== "";
const isTextOrNull = (value: unknown): boolean => value === null || typeof value === "string";
const isCount = (value: unknown): value is number => typeof value === "number" && Number.isInteger(value) && value >= 0;
const plain = (name: string): string => JSON.stringify(name).slice(1, -1).slice(0, 100);

function wrong(where: string, what: string): TapeoutError {
  return new TapeoutError("manifest", `${where}: ${what}`, AGAIN);
}
