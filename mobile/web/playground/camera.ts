/** The camera, for a film. */

/** Starts it and shows it in the element. Throws an Error in words. */
export async function startCamera(film: HTMLVideoElement): Promise<void> {
  if (!navigator.mediaDevices) throw new Error("The camera is there for pages on https or on localhost alone.");
  try {
    const wanted = { width: { ideal: 640 }, height: { ideal: 480 }, facingMode: "environment" };
    film.srcObject = await navigator.mediaDevices.getUserMedia({ video: wanted, audio: false });
    await film.play();
  } catch (error) {
    stopCamera(film);
    const name = error instanceof DOMException ? error.name : "";
    if (name === "NotAllowedError") throw new Error("The browser was not allowed to use the camera; its settings for this page say so.");
    if (name === "NotFoundError") throw new Error("There is no camera.");
    throw new Error(`The camera does not start: ${error instanceof Error ? error.message : String(error)}`);
  }
}

export function stopCamera(film: HTMLVideoElement): void {
  if (film.srcObject instanceof MediaStream) for (const track of film.srcObject.getTracks()) track.stop();
  film.srcObject = null;
}
