/** Lets the event loop run once, so that messages that came in are heard. A timer would wait 4 ms, a promise would not let go. */
export function pause(): Promise<void> {
  return new Promise((resolve) => {
    waiting.push(resolve);
    if (channel) channel.port2.postMessage(null);
    else setImmediate(wake);
  });
}

const waiting: (() => void)[] = [];
const channel = typeof setImmediate === "undefined" ? new MessageChannel() : null; // in Node a port keeps the process alive
if (channel) channel.port1.onmessage = wake;

function wake(): void {
  waiting.shift()?.();
}
