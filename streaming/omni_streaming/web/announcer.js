// The one place from which words are spoken that do not come as Omni’s voice.
//
// Two speakers never say the same: with `isReader` everything goes to the screen reader, through
// two live regions; otherwise Omni’s own voice says what Omni sees, and the browser’s voice says
// what the page has to tell (the server’s voice is not there when the connection is not). A
// browser without a voice leaves that to the screen reader, too.

const DEBOUNCE_MS = 600; // one announcement, not one per sentence
const LONGEST_WAIT_MS = 2000; // however fast sentences come
const CLEARED_MS = 60; // a region has to be empty first, or the same words are not read again
const OWN_TURN_MS = 4000; // how long the browser’s voice waits for Omni’s to finish
const POLL_MS = 100;

export class Announcer {
  /**
   * @param {HTMLElement} status polite live region
   * @param {HTMLElement} alert region with role alert, for hazards only
   * @param {() => boolean} isSpeaking whether Omni’s voice is being heard
   */
  constructor(status, alert, isSpeaking) {
    this.status = status;
    this.alert = alert;
    this.isSpeaking = isSpeaking;
    this.isReader = false;
    this.rate = 1;
    this.pending = []; // sentences
    this.sinceMs = null; // when the first of them came
    this.waiting = ""; // for Omni’s voice to finish
    this.timers = {};
    globalThis.speechSynthesis?.getVoices(); // the first call makes browsers load them
  }

  /** Who speaks what Omni sees: the screen reader, or Omni’s own voice. */
  setReader(isReader) {
    this.isReader = isReader;
    this.clear();
    this.alert.setAttribute("aria-live", isReader ? "assertive" : "off");
  }

  get hasVoice() {
    return (globalThis.speechSynthesis?.getVoices().length ?? 0) > 0;
  }

  /** A whole sentence of what Omni says. */
  sentence(words) {
    if (this.isReader) this.queue(words);
  }

  /** A hazard: at once, before and instead of what waits. Shown in either case. */
  hazard(words) {
    this.forget();
    this.set("alert", words);
  }

  /** What the page itself has to say. */
  tell(words) {
    if (this.isReader || !this.hasVoice) return this.queue(words);
    this.aloud(words, performance.now() + OWN_TURN_MS);
  }

  /** Silence, and nothing that waits. */
  clear() {
    this.forget();
    clearTimeout(this.timers.aloud);
    this.waiting = "";
    clearTimeout(this.timers.status);
    globalThis.speechSynthesis?.cancel();
    this.status.textContent = "";
  }

  forget() {
    clearTimeout(this.timers.flush);
    this.pending = [];
    this.sinceMs = null;
  }

  queue(words) {
    const nowMs = performance.now();
    this.sinceMs ??= nowMs;
    this.pending.push(words);
    clearTimeout(this.timers.flush);
    const waitMs = Math.min(DEBOUNCE_MS, this.sinceMs + LONGEST_WAIT_MS - nowMs);
    this.timers.flush = setTimeout(() => {
      const text = this.pending.join(" ");
      this.forget();
      this.set("status", text);
    }, Math.max(0, waitMs));
  }

  set(region, words) {
    this[region].textContent = "";
    clearTimeout(this.timers[region]);
    this.timers[region] = setTimeout(() => {
      this[region].textContent = words;
    }, CLEARED_MS);
  }

  aloud(words, untilMs) {
    clearTimeout(this.timers.aloud);
    const all = this.waiting ? `${this.waiting} ${words}` : words;
    this.waiting = "";
    if (this.isSpeaking() && performance.now() < untilMs) {
      this.waiting = all;
      this.timers.aloud = setTimeout(() => {
        this.waiting = "";
        this.aloud(all, untilMs);
      }, POLL_MS);
      return;
    }
    const utterance = new SpeechSynthesisUtterance(all);
    utterance.lang = "en";
    utterance.rate = this.rate;
    utterance.onerror = ({ error }) => {
      if (error !== "canceled" && error !== "interrupted") this.queue(all);
    };
    speechSynthesis.speak(utterance);
  }
}

/** Takes whole sentences out of text that comes in pieces. */
export class Sentences {
  constructor() {
    this.rest = "";
  }

  /** @returns {string[]} the sentences that `piece` completes */
  push(piece) {
    this.rest += piece;
    const found = [];
    for (;;) {
      const end = this.rest.match(/[.!?…]+["'”’)\]]*\s+(?=[^\sa-z])/); // “Stop!” says the sign
      if (end === null) return found;
      found.push(this.rest.slice(0, end.index + end[0].length).trim());
      this.rest = this.rest.slice(end.index + end[0].length);
    }
  }

  /** @returns {string} what is left when nothing more comes */
  end() {
    const rest = this.rest.trim();
    this.rest = "";
    return rest;
  }
}
