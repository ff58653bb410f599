// The loudspeaker: plays items of speech and knows how much of each was heard.

import { UNSAFE } from "./microphone.js";

export const RATE_HZ = 24000;

const MEANWHILE = " You can type in the meantime; answers come in writing.";

/** Why there can be no sound, in words for the user. */
export class SoundError extends Error {}

export class Player {
  /**
   * Open the loudspeaker. Only after a click or a key: the browser allows no sound before.
   * @param {(report: {state: string, item: string, playedMs: number, share: number,
   *   level: number}) => void} onReport states: started, playing (every 50 ms), ended, stopped;
   *   share: of the item's sound that has arrived
   * @throws {SoundError} with words for the user; nothing stays open
   */
  static async open(onReport) {
    // Elsewhere an audio context has no worklets.
    if (!window.isSecureContext) throw new SoundError(UNSAFE + MEANWHILE);
    const player = new Player();
    try {
      player.context = new AudioContext({ sampleRate: RATE_HZ, latencyHint: "interactive" });
      await player.context.audioWorklet.addModule("playback-worklet.js");
    } catch (error) {
      player.context?.close();
      throw new SoundError(`The loudspeaker cannot be opened (${error.message}).${MEANWHILE}`);
    }
    const { context } = player;
    player.onReport = onReport;
    player.silenced = new Set(); // items stopped: what still arrives of them is dropped
    player.item = null; // being played or queued last
    player.waiters = []; // for the answers to stops
    player.arrived = new Map(); // item -> samples
    player.node = new AudioWorkletNode(context, "playback", {
      numberOfInputs: 0,
      outputChannelCount: [1],
    });
    player.node.port.onmessage = ({ data }) => player.report(data);
    player.node.connect(context.destination);
    return player;
  }

  /** Queue speech of `item`: base64 of little-endian int16. */
  push(item, base64) {
    if (this.silenced.has(item)) return;
    this.item = item;
    const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    const samples = new Float32Array(bytes.length >> 1);
    for (let index = 0; index < samples.length; index += 1) {
      samples[index] = view.getInt16(2 * index, true) / 32768;
    }
    this.arrived.set(item, (this.arrived.get(item) ?? 0) + samples.length);
    this.node.port.postMessage({ type: "push", item, samples }, [samples.buffer]);
  }

  /** Nothing more comes of `item`. */
  end(item) {
    if (!this.silenced.has(item)) this.node.port.postMessage({ type: "end", item });
  }

  /** Fall silent at once (5 ms fade) and drop what is queued; resolves when that is done. */
  stop() {
    if (this.item === null) return Promise.resolve();
    this.silenced.add(this.item);
    this.item = null;
    this.node.port.postMessage({ type: "stop" });
    return new Promise((resolve) => this.waiters.push(resolve));
  }

  /** What has left the worklet but not the loudspeaker yet, in ms. */
  get latencyMs() {
    return 1000 * (this.context.outputLatency || this.context.baseLatency || 0);
  }

  report({ state, item, samples, level }) {
    let playedMs = (1000 * samples) / RATE_HZ;
    if (state === "playing") playedMs = Math.max(0, playedMs - this.latencyMs);
    if (state === "ended" && this.item === item) this.item = null;
    const share = samples / (this.arrived.get(item) ?? 1);
    if (item !== null) this.onReport({ state, item, playedMs: Math.floor(playedMs), share, level });
    if (state === "stopped") this.waiters.shift()?.();
  }
}
