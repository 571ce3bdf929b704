/** A web server for tests, which can do what servers and networks do. */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { sha256, type Contents } from "./bundles";

/** What goes wrong with a file, for so many answers. cut: the connection ends after so many bytes; status: an error instead;
 * data: sent instead; tag: the ETag; untold: no Content-Length, and a plain end where it is cut; stall: nothing after cut. */
export interface Fault {
  times?: number;
  cut?: number;
  status?: number;
  data?: Uint8Array;
  tag?: string;
  untold?: boolean;
  stall?: boolean;
  location?: string;
}

/** requests: "path" or "path bytes=N-" of each; sent: bytes of bodies. */
export class Fileserver {
  url = "";
  contents: Contents = {};
  faults: Record<string, Fault> = {};
  requests: string[] = [];
  sent = 0;
  ranges = true;
  tags = true;
  readonly #server: Server;

  private constructor() {
    this.#server = createServer((request, response) => this.#answer(request, response));
  }

  static async start(): Promise<Fileserver> {
    const server = new Fileserver();
    await new Promise<void>((resolve) => server.#server.listen(0, "127.0.0.1", resolve));
    server.url = `http://127.0.0.1:${(server.#server.address() as AddressInfo).port}/`;
    return server;
  }

  forget(): void {
    this.requests = [];
    this.sent = 0;
  }

  close(): void {
    this.#server.closeAllConnections();
    this.#server.close();
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    const path = decodeURIComponent(new URL(request.url ?? "/", "http://host").pathname.slice(1));
    const { range = "", "if-range": condition } = request.headers;
    this.requests.push(`${path} ${range}`.trim());
    const fault = this.#fault(path);
    const data = fault.data ?? this.contents[path];
    if (fault.location) return void response.writeHead(302, { Location: fault.location, "Content-Length": 0 }).end();
    if (!data || fault.status) return void response.writeHead(fault.status ?? 404).end();
    const tag = fault.tag ?? `"${sha256(data).slice(0, 16)}"`;
    const wanted = Number(/^bytes=(\d+)-$/.exec(range)?.[1] ?? 0);
    const start = this.ranges && (condition === undefined || condition === tag) ? wanted : 0;
    if (start && start >= data.length) return void response.writeHead(416).end();
    const body = data.subarray(start);
    response.statusCode = start ? 206 : 200;
    if (this.tags) response.setHeader("ETag", tag);
    if (start) response.setHeader("Content-Range", `bytes ${start}-${data.length - 1}/${data.length}`);
    if (!fault.untold) response.setHeader("Content-Length", body.length);
    const sent = body.subarray(0, fault.cut ?? body.length);
    this.sent += sent.length;
    if (!sent.length) return void response.end();
    response.write(sent, () => {
      if (fault.cut === undefined || fault.untold) response.end();
      else if (!fault.stall) response.destroy();
    });
  }

  #fault(path: string): Fault {
    const fault = this.faults[path];
    if (!fault || fault.times === 0) return {};
    if (fault.times !== undefined) fault.times -= 1;
    return fault;
  }
}
