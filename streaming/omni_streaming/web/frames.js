// Pictures of the camera on their way to the server: how often, how large, as JPEG.

const QUALITY = 0.7;
const SIDES = [640, 480, 320]; // longest side in pixels; the smaller the slower the network is
const BEST_MS = 300; // between frames
const SLOWEST_MS = 2400;
const HIDDEN_MS = 2000; // nobody looks at the page, and browsers wake it once a second at most
const BEHIND_BYTES = 48 * 1024; // waiting in the socket: about one frame

/** How often frames go: fewer and smaller when the socket does not get rid of them. */
export class Pace {
  constructor() {
    this.intervalMs = BEST_MS;
  }

  /**
   * @param {number} bufferedBytes that the socket has not sent yet
   * @returns {{maySend: boolean, side: number, waitMs: number}} waitMs until the next question
   */
  next(bufferedBytes, isHidden) {
    const isBehind = bufferedBytes > BEHIND_BYTES;
    const wanted = isBehind ? 2 * this.intervalMs : 0.8 * this.intervalMs;
    this.intervalMs = Math.min(SLOWEST_MS, Math.max(BEST_MS, wanted));
    const slowness = Math.floor(Math.log2(this.intervalMs / BEST_MS));
    return {
      maySend: !isBehind,
      side: SIDES[Math.min(slowness, SIDES.length - 1)],
      waitMs: isHidden ? Math.max(HIDDEN_MS, this.intervalMs) : this.intervalMs,
    };
  }
}

export class Frames {
  /**
   * @param {import("./camera.js").Camera} camera
   * @param {object} socket
   * @param {() => number | null} socket.bufferedBytes null while nothing may be sent
   * @param {(image: string, takenMs: number) => void} socket.send base64 of a JPEG
   */
  constructor(camera, socket) {
    this.camera = camera;
    this.socket = socket;
    this.canvas = document.createElement("canvas");
    this.context = this.canvas.getContext("2d");
    this.pace = new Pace();
    this.timer = null;
  }

  start() {
    if (this.timer === null) this.plan(0);
  }

  stop() {
    clearTimeout(this.timer);
    this.timer = null;
  }

  plan(waitMs) {
    this.timer = setTimeout(async () => {
      const startedMs = performance.now();
      const nextMs = await this.take();
      const spentMs = performance.now() - startedMs;
      if (this.timer !== null) this.plan(Math.max(0, nextMs - spentMs));
    }, waitMs);
  }

  /** Send the picture there is now, if one may go; returns ms until the next. */
  async take() {
    const { video, isOn } = this.camera;
    const buffered = this.socket.bufferedBytes();
    const { maySend, side, waitMs } = this.pace.next(buffered ?? 0, document.hidden);
    if (!isOn || video.videoWidth === 0) return waitMs;
    const takenMs = performance.now();
    this.camera.watch(takenMs);
    if (buffered === null || !maySend) return waitMs;
    const scale = Math.min(1, side / Math.max(video.videoWidth, video.videoHeight));
    this.canvas.width = Math.round(video.videoWidth * scale);
    this.canvas.height = Math.round(video.videoHeight * scale);
    this.context.drawImage(video, 0, 0, this.canvas.width, this.canvas.height);
    const blob = await new Promise((resolve) => {
      this.canvas.toBlob(resolve, "image/jpeg", QUALITY);
    });
    const image = blob && (await base64(blob));
    if (image && this.socket.bufferedBytes() !== null) this.socket.send(image, takenMs);
    return waitMs;
  }
}

function base64(blob) {
  return new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => resolve(null);
    reader.readAsDataURL(blob);
  });
}
