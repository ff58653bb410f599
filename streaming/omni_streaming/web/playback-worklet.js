// Plays items of speech in order and says exactly how many samples of each have been rendered.
//
// Runs on the audio thread of a 24 kHz context, so one sample in is one sample out.
// In:  {type: "push", item, samples} | {type: "end", item} | {type: "stop"}
// Out: {state: "started" | "playing" | "ended" | "stopped", item, samples, level}, samples counted
//      from the item's beginning; "playing" comes every 50 ms. A stop is always answered by one
//      "stopped", whose item is null when nothing was being played. What is pushed after a stop is
//      played after it, even if it comes before the sound has faded.

const REPORT_SAMPLES = sampleRate / 20;
const FADE_SAMPLES = Math.round(sampleRate * 0.005); // a cut without a click

class PlaybackProcessor extends AudioWorkletProcessor {
  constructor() {
    super();
    // {item, samples, offset}, {item, ended: true} after an item's last, or {stops: true} where a
    // stop came that has not been answered yet.
    this.queue = [];
    this.reset();
    this.port.onmessage = ({ data }) => this.receive(data);
  }

  reset() {
    this.item = null;
    this.played = 0;
    this.unreported = 0;
    this.energy = 0;
    this.fade = 0; // samples left of the fade before a stop
  }

  receive(message) {
    if (message.type === "push") {
      this.queue.push({ item: message.item, samples: message.samples, offset: 0 });
    } else if (message.type === "end") {
      this.queue.push({ item: message.item, ended: true });
    } else {
      this.dropQueued();
      this.queue.push({ stops: true });
      if (this.item === null) this.answerStops();
      else this.fade ||= FADE_SAMPLES;
    }
  }

  /** Forget what is queued but for the sound that fades and the stops to answer. */
  dropQueued() {
    this.queue = this.queue.filter(({ item, samples, stops }, index) => {
      const isPlaying = index === 0 && item === this.item && samples !== undefined;
      return isPlaying || stops === true;
    });
  }

  process(_, [[output]]) {
    for (let index = 0; index < output.length; index += 1) output[index] = this.next();
    return true;
  }

  /** The next sample; 0 when nothing is there to play. */
  next() {
    while (this.queue.length > 0) {
      const head = this.queue[0];
      if (head.stops) {
        this.answerStops(); // the sound ended before its fade
      } else if (head.ended) {
        this.queue.shift();
        if (head.item === this.item) this.finish("ended");
      } else if (head.offset >= head.samples.length) {
        this.queue.shift();
      } else {
        return this.play(head);
      }
    }
    return 0;
  }

  play(head) {
    if (head.item !== this.item) {
      if (this.item !== null) this.finish("ended");
      this.item = head.item;
      this.report("started");
    }
    let sample = head.samples[head.offset];
    head.offset += 1;
    this.played += 1;
    this.unreported += 1;
    this.energy += sample * sample;
    if (this.fade > 0) {
      sample *= this.fade / FADE_SAMPLES;
      this.fade -= 1;
      if (this.fade === 0) {
        this.queue.shift();
        this.answerStops();
      }
    } else if (this.unreported >= REPORT_SAMPLES) {
      this.report("playing");
    }
    return sample;
  }

  answerStops() {
    while (this.queue[0]?.stops) {
      this.queue.shift();
      this.finish("stopped");
    }
  }

  finish(state) {
    this.report(state);
    this.reset();
  }

  report(state) {
    const level = this.unreported > 0 ? Math.sqrt(this.energy / this.unreported) : 0;
    this.port.postMessage({ state, item: this.item, samples: this.played, level });
    this.unreported = 0;
    this.energy = 0;
  }
}

registerProcessor("playback", PlaybackProcessor);
