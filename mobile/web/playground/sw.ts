/** The service worker: the server's files while it answers, what was kept of them when it does not.
 *
 * files.js, written with the site, lists the page's own files. Bundles are none of them: the SDK keeps those itself, and
 * checks them each time. A new list has another digest, so the browser installs this worker anew.
 */
declare function importScripts(...urls: string[]): void;

interface Listed {
  version: string;
  files: string[];
  webgpu: string[];
}

interface Extendable extends Event {
  waitUntil(work: Promise<unknown>): void;
}

interface Fetching extends Extendable {
  request: Request;
  respondWith(response: Promise<Response>): void;
}

interface Scope {
  site: Listed;
  registration: { scope: string };
  clients: { claim(): Promise<void> };
  skipWaiting(): Promise<void>;
  addEventListener(type: "install" | "activate", listener: (event: Extendable) => void): void;
  addEventListener(type: "fetch", listener: (event: Fetching) => void): void;
  addEventListener(type: "message", listener: (event: Extendable & { data: unknown }) => void): void;
}

const scope = self as unknown as Scope;
importScripts("files.js");
const own = `tapeout playground ${scope.registration.scope} `;
const kept = own + scope.site.version;

scope.addEventListener("install", (event) => event.waitUntil(install()));
scope.addEventListener("activate", (event) => event.waitUntil(activate()));
scope.addEventListener("message", (event) => {
  if (event.data === "webgpu") event.waitUntil(add(scope.site.webgpu));
});
scope.addEventListener("fetch", (event) => {
  const { request } = event;
  const path = request.url.startsWith(scope.registration.scope) ? request.url.slice(scope.registration.scope.length) : "bundles/";
  if (request.method === "GET" && !path.startsWith("bundles/") && !request.headers.has("Range")) event.respondWith(answer(request));
});

async function install(): Promise<void> {
  await add(scope.site.files);
  await scope.skipWaiting();
}

async function activate(): Promise<void> {
  for (const name of await caches.keys()) if (name.startsWith(own) && name !== kept) await caches.delete(name);
  await scope.clients.claim();
}

/** Keeps files that are not kept yet; all of them or, where one cannot be had, none. */
async function add(files: string[]): Promise<void> {
  const cache = await caches.open(kept);
  const missing = [];
  for (const file of files) if (!(await cache.match(file))) missing.push(new Request(file, { cache: "no-cache" }));
  await cache.addAll(missing);
}

async function answer(request: Request): Promise<Response> {
  const found = async (): Promise<Response | undefined> => (await caches.open(kept)).match(request, { ignoreSearch: true, ignoreVary: true });
  try {
    const response = await fetch(request);
    return response.status >= 500 ? ((await found()) ?? response) : response;
  } catch {
    return (await found()) ?? Response.error();
  }
}
