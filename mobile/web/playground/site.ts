/** What `tapeout playground` wrote beside the page: its bundles and questions. */
import type { Metric } from "./score";

/** url: from the page's folder. digest: sha256 of the manifest, by which the bundle is trusted. size: bytes of all. */
export interface Offer {
  url: string;
  label: string;
  name: string;
  version: string;
  device: string;
  title: string;
  digest: string;
  size: number;
}

/** original: what the checkpoint answered in the build. changed: whether a device's files scored otherwise than it. */
export interface Question {
  task: string;
  question: string;
  answers: string[];
  metric: Metric;
  image: string;
  original: string | null;
  changed: boolean;
}

export interface Site {
  bundles: Offer[];
  source: string;
  questions: Question[];
}

/** Throws where the site's own files are not there. */
export async function readSite(): Promise<Site> {
  const [site, asked] = await Promise.all([json<{ bundles: Offer[] }>("site.json"), json<Omit<Site, "bundles">>("questions.json")]);
  return { bundles: site.bundles, source: asked.source, questions: asked.questions };
}

async function json<Value>(name: string): Promise<Value> {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name}: the server answered ${response.status}`);
  return (await response.json()) as Value;
}

/** The address of a file of the site. */
export function address(path: string): string {
  return new URL(path, document.baseURI).href;
}
