import { refused } from "./dsse";
import { isObject, isTexts, member, objectOf } from "./json";
import { NAME, type ReadManifest } from "./manifest";

const STATEMENT = "https://in-toto.io/Statement/v1";
const PREDICATE = "https://slsa.dev/provenance/v1";

/** Throws "signature" unless the payload is the provenance of just this bundle: an in-toto v1 statement with the SLSA v1
 * predicate, as stages/release/signing/statement.py checks it. */
export function checkProvenance(payload: Uint8Array, manifest: ReadManifest, where: string): void {
  const value = objectOf(payload, where, "signature");
  const need = (right: boolean, what: string): void => {
    if (!right) throw refused(where, `no provenance as it should be: ${what}`);
  };
  need(value["_type"] === STATEMENT, `its _type must be ${STATEMENT}`);
  need(value["predicateType"] === PREDICATE, `its predicateType must be ${PREDICATE}`);
  const subject = value["subject"];
  need(Array.isArray(subject) && subject.length === 1 && isArtifact(subject[0], true) && member(subject[0], "name") === NAME, `its one subject must be ${NAME}, by sha256`);
  const definition = member(value["predicate"], "buildDefinition");
  const run = member(value["predicate"], "runDetails");
  const parameters = member(definition, "externalParameters");
  need(typeof member(definition, "buildType") === "string", "buildDefinition.buildType must be a URI");
  const [name, version, device] = ["name", "version", "device"].map((each) => member(parameters, each));
  need([name, version, device].every((each) => typeof each === "string"), "externalParameters must name the bundle");
  for (const each of ["overrides", "config_dirs"]) {
    const list = member(parameters, each);
    need(list === undefined || isTexts(list), `externalParameters.${each} must be a list of texts`);
  }
  const needed = member(definition, "resolvedDependencies");
  need(Array.isArray(needed) && needed.every((each) => isArtifact(each, false) && isCommit(each)), "buildDefinition.resolvedDependencies is malformed");
  need(typeof member(member(run, "builder"), "id") === "string", "runDetails.builder.id must be a URI");
  const made = member(run, "byproducts");
  need(Array.isArray(made) && made.every((each) => isArtifact(each, true)), "runDetails.byproducts is malformed");

  const { name: ours, version: number, device: target } = manifest.value;
  if (name !== ours || version !== number || device !== target.name) throw refused(where, "it is the provenance of another bundle");
  if (digestOf((subject as unknown[])[0]) !== manifest.digest) throw refused(where, `${NAME} was changed after that: its sha256 is ${manifest.digest}`);
  const bundles = (made as unknown[]).filter((each) => member(each, "name") === "bundle").map(digestOf);
  if (bundles.length !== 1 || bundles[0] !== manifest.digest) throw refused(where, "its build made another bundle");
}

const digestOf = (value: unknown): unknown => member(member(value, "digest"), "sha256");

/** Whether this is an in-toto resource descriptor with a name. sha256: it must have such a digest. */
function isArtifact(value: unknown, sha256: boolean): boolean {
  if (!isObject(value) || typeof member(value, "name") !== "string") return false;
  const { digest: digests = {}, annotations: notes = {}, uri } = value;
  if (!isObject(digests) || !Object.values(digests).every((each) => typeof each === "string")) return false;
  const changed = member(notes, "changed");
  if (!isObject(notes) || !(changed === undefined || isTexts(changed)) || !(uri === undefined || typeof uri === "string")) return false;
  return !sha256 || /^[0-9a-f]{64}$/.test(String(digests["sha256"]));
}

function isCommit(value: unknown): boolean {
  const commit = member(member(value, "digest"), "gitCommit");
  return commit === undefined || /^[0-9a-f]{40,64}$/.test(String(commit));
}
