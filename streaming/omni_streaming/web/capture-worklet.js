// Microphone samples -> 24 kHz int16 in chunks of 20 ms, with their level.
//
// Runs on the audio thread. Browsers that open the microphone only at its own rate (Firefox) hand
// over that rate; it is converted here with a windowed-sinc filter.

const RATE_HZ = 24000;
const CHUNK_SAMPLES = RATE_HZ / 50;
const HALF_TAPS = 16; // of the filter, in samples of the lower of the two rates

/** Converts a stream of blocks from one rate to RATE_HZ; blocks may have any length. */
class Resampler {
  constructor(fromHz) {
    this.step = fromHz / RATE_HZ; // input samples per output sample
    this.cutoff = Math.min(1, RATE_HZ / fromHz); // of the input's Nyquist frequency
    this.reach = Math.ceil(HALF_TAPS / this.cutoff);
    this.input = new Float32Array(this.reach); // silence before the first sample
    this.position = this.reach; // of the next output sample, in `input`
  }

  /** The output samples that `block` completes. */
  push(block) {
    const input = new Float32Array(this.input.length + block.length);
    input.set(this.input);
    input.set(block, this.input.length);
    const output = [];
    while (this.position + this.reach < input.length) {
      output.push(this.at(input, this.position));
      this.position += this.step;
    }
    const used = Math.max(0, Math.floor(this.position) - this.reach);
    this.input = input.slice(used);
    this.position -= used;
    return output;
  }

  at(input, position) {
    const first = Math.ceil(position - this.reach);
    const last = Math.floor(position + this.reach);
    let sum = 0;
    for (let index = first; index <= last; index += 1) {
      const offset = position - index;
      const angle = Math.PI * offset * this.cutoff;
      const sinc = offset === 0 ? 1 : Math.sin(angle) / angle;
      const hann = 0.5 + 0.5 * Math.cos((Math.PI * offset) / (this.reach + 1));
      sum += input[index] * sinc * hann;
    }
    return sum * this.cutoff;
  }
}

class CaptureProcessor extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = sampleRate === RATE_HZ ? null : new Resampler(sampleRate);
    this.chunk = new Int16Array(CHUNK_SAMPLES);
    this.length = 0;
    this.energy = 0;
  }

  process([channels]) {
    const block = channels[0];
    if (!block) return true; // the microphone has not delivered yet
    for (const sample of this.resampler ? this.resampler.push(block) : block) this.add(sample);
    return true;
  }

  add(sample) {
    const clipped = Math.max(-1, Math.min(1, sample));
    this.chunk[this.length] = Math.round(clipped * 32767);
    this.energy += clipped * clipped;
    this.length += 1;
    if (this.length < CHUNK_SAMPLES) return;
    const level = Math.sqrt(this.energy / CHUNK_SAMPLES);
    const pcm = this.chunk.buffer;
    this.port.postMessage({ pcm, level }, [pcm]);
    this.chunk = new Int16Array(CHUNK_SAMPLES);
    this.length = 0;
    this.energy = 0;
  }
}

registerProcessor("capture", CaptureProcessor);
