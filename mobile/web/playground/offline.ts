/** The page's own files, kept by a service worker, so that the page opens where the server is gone. */

/** Registers it; whether the page is kept now. Where service workers are refused (a plain http address), it is not. */
export async function keep(): Promise<boolean> {
  if (!("serviceWorker" in navigator) || !isSecureContext) return false;
  try {
    await navigator.serviceWorker.register("sw.js");
    await navigator.serviceWorker.ready;
    return true;
  } catch {
    return Boolean(navigator.serviceWorker.controller); // offline the script cannot be fetched anew; what is kept serves
  }
}

/** Has what WebGPU needs kept too. */
export async function keepForWebgpu(): Promise<void> {
  const registration = await navigator.serviceWorker?.ready;
  registration?.active?.postMessage("webgpu");
}
