// The microphone as a stream of 24 kHz PCM chunks.

/** Why the microphone cannot be used, in words for the user. */
export class MicrophoneError extends Error {}

const REASONS = {
  NotAllowedError:
    "The microphone was refused. Allow it for this page in the browser’s address bar, then press " +
    "Start talking again.",
  NotFoundError: "No microphone was found. Connect one, then press Start talking again.",
  NotReadableError:
    "The microphone is in use by another program. Close that program, then press Start talking " +
    "again.",
};
export const UNSAFE =
  "Browsers give a page microphone and sound only over https or on localhost. Open Omni that way.";
const MEANWHILE = " You can type in the meantime.";

export class Microphone {
  /**
   * Ask for the microphone and start delivering.
   * @param {AudioContext} context preferred context (24 kHz)
   * @param {(chunk: {pcm: ArrayBuffer, level: number}) => void} onChunk int16 chunks of 20 ms
   * @param {() => void} onLost the device is gone
   * @throws {MicrophoneError} with words for the user
   */
  static async open(context, onChunk, onLost) {
    if (!navigator.mediaDevices?.getUserMedia) throw new MicrophoneError(UNSAFE + MEANWHILE);
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({
        audio: {
          echoCancellation: true,
          noiseSuppression: true,
          autoGainControl: true,
          channelCount: 1,
        },
      });
    } catch (error) {
      const reason = REASONS[error.name] ?? `The microphone cannot be used (${error.message}).`;
      throw new MicrophoneError(reason + MEANWHILE);
    }
    const microphone = new Microphone();
    microphone.stream = stream;
    [microphone.track] = stream.getAudioTracks();
    microphone.track.addEventListener("ended", onLost);
    try {
      await microphone.connect(context, onChunk);
    } catch (error) {
      microphone.close();
      throw new MicrophoneError(`The microphone cannot be read (${error.message}).${MEANWHILE}`);
    }
    return microphone;
  }

  async connect(context, onChunk) {
    try {
      this.source = context.createMediaStreamSource(this.stream);
    } catch (error) {
      if (error.name !== "NotSupportedError") throw error;
      // Firefox opens a microphone only at its own rate; the worklet converts.
      context = this.ownContext = new AudioContext({ latencyHint: "interactive" });
      this.source = context.createMediaStreamSource(this.stream);
    }
    await context.audioWorklet.addModule("capture-worklet.js");
    this.node = new AudioWorkletNode(context, "capture", {
      numberOfOutputs: 0,
      channelCount: 1,
      channelCountMode: "explicit",
    });
    this.node.port.onmessage = ({ data }) => onChunk(data);
    this.source.connect(this.node);
  }

  /** A muted microphone delivers silence: the server’s clock goes on. */
  set muted(value) {
    this.track.enabled = !value;
  }

  close() {
    this.source?.disconnect();
    if (this.node) this.node.port.onmessage = null;
    this.track.stop();
    this.ownContext?.close();
  }
}
