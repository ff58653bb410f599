// The camera as a picture in a <video>: chosen, switched, watched.

const BACK = "environment";
const FRONT = "user";
const FROZEN_MS = 10_000; // not one pixel changed: real cameras are never that still
const PROBE = { width: 32, height: 24 }; // what two pictures are compared by

/** Why there is no camera, in words for the user; `state` names it for the page. */
export class CameraError extends Error {
  constructor(state, words) {
    super(words);
    this.state = state;
  }
}

const REFUSED =
  "The camera was refused. Allow it for this page in the browser’s settings, then press Switch camera.";
const NONE = "No camera was found. Connect one, then press Switch camera.";
const BUSY = "The camera is in use by another program. Close that program, then press Switch camera.";
const UNSAFE =
  "Browsers give a page camera, microphone and sound only over https or on localhost. Open Omni " +
  "that way.";

const REASONS = {
  NotAllowedError: ["denied", REFUSED],
  NotFoundError: ["missing", NONE],
  OverconstrainedError: ["missing", NONE],
  NotReadableError: ["busy", BUSY],
};

/** Notices a picture that has stopped changing. */
export class Stillness {
  constructor() {
    this.last = null;
    this.sinceMs = null;
  }

  /**
   * @param {Uint8ClampedArray} pixels of the picture at `nowMs`
   * @returns {boolean} whether nothing at all has changed for FROZEN_MS
   */
  look(pixels, nowMs) {
    const isSame = this.last !== null && this.last.every((value, index) => value === pixels[index]);
    if (!isSame) this.sinceMs = nowMs;
    this.last = pixels;
    return nowMs - this.sinceMs >= FROZEN_MS;
  }
}

export class Camera {
  /**
   * @param {HTMLVideoElement} video where the picture is shown
   * @param {object} handlers
   * @param {() => void} handlers.onLost the device is gone
   * @param {(isFrozen: boolean) => void} handlers.onFrozen it stopped or moves again
   */
  constructor(video, handlers) {
    this.video = video;
    this.handlers = handlers;
    this.facing = BACK;
    this.deviceId = null; // chosen by switching, where cameras have no side
    this.stream = null;
    this.isFrozen = false;
    this.probe = document.createElement("canvas");
    Object.assign(this.probe, PROBE);
    this.context = this.probe.getContext("2d", { willReadFrequently: true });
  }

  get isOn() {
    return this.stream !== null;
  }

  /** Which camera it is, for the user. */
  get name() {
    const { facingMode } = this.track.getSettings();
    if (facingMode === BACK) return "Back camera";
    if (facingMode === FRONT) return "Front camera";
    return this.track.label || "Camera";
  }

  /**
   * Ask for the camera, the back one first.
   * @throws {CameraError} with words for the user
   */
  async open() {
    this.close();
    if (!navigator.mediaDevices?.getUserMedia) throw new CameraError("unsafe", UNSAFE);
    const size = { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 15 } };
    const which =
      this.deviceId === null
        ? { facingMode: { ideal: this.facing } }
        : { deviceId: { exact: this.deviceId } };
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ video: { ...size, ...which } });
    } catch (error) {
      this.deviceId = null; // that one may be gone: the next attempt takes any
      const [state, words] = REASONS[error.name] ?? [
        "failed",
        `The camera cannot be used (${error.message}). Press Switch camera to try again.`,
      ];
      throw new CameraError(state, words);
    }
    [this.track] = this.stream.getVideoTracks();
    const { track } = this;
    track.addEventListener("ended", () => {
      if (this.track === track && this.isOn) this.lose();
    });
    this.stillness = new Stillness();
    this.isFrozen = false;
    this.video.srcObject = this.stream;
    await this.video.play().catch(() => {}); // interrupted by close(): then nothing is shown
  }

  /** The other side, or the next device where cameras have no sides. */
  async switch() {
    const devices = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
    const ids = devices.filter(({ kind }) => kind === "videoinput").map(({ deviceId }) => deviceId);
    if (this.isOn) {
      const { facingMode, deviceId } = this.track.getSettings();
      if (facingMode === undefined && ids.length > 1) {
        this.deviceId = ids[(ids.indexOf(deviceId) + 1) % ids.length];
      } else {
        this.facing = facingMode === FRONT || ids.length < 2 ? BACK : FRONT;
        this.deviceId = null;
      }
    }
    await this.open();
    return ids.length;
  }

  lose() {
    this.close();
    this.handlers.onLost();
  }

  close() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = null;
    this.video.srcObject = null;
  }

  /** Look whether the picture still moves; called for every frame. */
  watch(nowMs) {
    this.context.drawImage(this.video, 0, 0, PROBE.width, PROBE.height);
    const { data } = this.context.getImageData(0, 0, PROBE.width, PROBE.height);
    const isFrozen = this.stillness.look(data, nowMs);
    if (isFrozen === this.isFrozen) return;
    this.isFrozen = isFrozen;
    this.handlers.onFrozen(isFrozen);
  }
}
