// Short sounds that say a state without words.

const HEARTBEAT_MS = 15_000; // of silence, then a tick says that the connection is still there

// Each is a list of tones: [Hz, from ms, for ms, loudness].
const TONES = {
  connected: [
    [523, 0, 90, 0.16],
    [784, 90, 140, 0.16],
  ],
  cameraOn: [
    [660, 0, 70, 0.16],
    [990, 70, 110, 0.16],
  ],
  cameraOff: [
    [990, 0, 70, 0.16],
    [495, 70, 150, 0.16],
  ],
  heartbeat: [[880, 0, 30, 0.05]],
  lost: [
    [440, 0, 180, 0.2],
    [330, 180, 180, 0.2],
    [247, 360, 260, 0.2],
  ],
  hazard: [
    [1175, 0, 80, 0.4],
    [1175, 130, 80, 0.4],
    [1568, 260, 120, 0.4],
  ],
  talk: [[700, 0, 60, 0.12]],
  sent: [[520, 0, 60, 0.12]],
};
const RAMP_S = 0.008; // no clicks

export class Earcons {
  constructor() {
    this.output = null; // there is none before the first click or key
    this.isOn = true;
    this.lastSoundMs = 0;
  }

  /** Sound by way of this context from now on. */
  open(context) {
    this.output = new GainNode(context);
    this.output.connect(context.destination);
  }

  /** Play one of TONES; returns how long it takes, in ms. */
  play(name) {
    const tones = TONES[name];
    if (!this.isOn || this.output === null) return 0;
    this.noteSound();
    const { context } = this.output;
    const startS = context.currentTime;
    for (const [hz, fromMs, forMs, loudness] of tones) {
      const beginS = startS + fromMs / 1000;
      const endS = beginS + forMs / 1000;
      const tone = new OscillatorNode(context, { frequency: hz });
      const volume = new GainNode(context, { gain: 0 });
      volume.gain.setValueAtTime(0, beginS);
      volume.gain.linearRampToValueAtTime(loudness, beginS + RAMP_S);
      volume.gain.setValueAtTime(loudness, endS - RAMP_S);
      volume.gain.linearRampToValueAtTime(0, endS);
      tone.connect(volume).connect(this.output);
      tone.start(beginS);
      tone.stop(endS);
    }
    return Math.max(...tones.map(([, fromMs, forMs]) => fromMs + forMs));
  }

  /** Something was heard: the next tick waits. */
  noteSound() {
    this.lastSoundMs = performance.now();
  }

  /** Called often while connected. */
  beat() {
    if (performance.now() - this.lastSoundMs >= HEARTBEAT_MS) this.play("heartbeat");
  }
}
