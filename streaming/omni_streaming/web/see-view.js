// What the page for describing shows. Sounds and speech are elsewhere.

import { View } from "./view.js";

const MOST_TURNS = 200; // of a walk of hours
const KINDS = {
  hazard: "Warning",
  change: "Omni sees",
  answer: "Omni answers",
  text: "Omni reads",
  framing: "About the camera",
};

/** Phase -> what is going on, and the words on the large button by way of listening. */
const PHASES = {
  idle: ["Not started", { any: "Start" }],
  connecting: ["Connecting", { any: "Connecting" }],
  listening: [
    "Listening",
    {
      always: "Listening. Press to turn the microphone off",
      hold: "Hold to talk",
      press: "Press to talk",
    },
  ],
  muted: ["Microphone off", { any: "Microphone off. Press to turn it on" }],
  ready: ["No microphone", { any: "No microphone. Press to try again" }],
  talking: ["Listening to you", { hold: "Release to send", press: "Press to send", any: "Talking" }],
  hearing: ["You are speaking", { any: "Listening to you" }],
  thinking: ["Thinking", { any: "Thinking" }],
  speaking: ["Omni is speaking", { any: "Omni is speaking. Talk to interrupt" }],
  lost: ["Connection lost", { any: "Connection lost. Press to try now" }],
  ended: ["Ended", { any: "Start again" }],
};

const byId = (id) => document.getElementById(id);

export class SightView extends View {
  /** @param {(words: string) => void} onNotice says what is shown as a notice */
  constructor(onNotice) {
    super();
    this.onNotice = onNotice;
  }

  showNotice(words, options) {
    super.showNotice(words, options);
    this.onNotice(words);
  }

  /** Single keys are named only where they work. */
  showShortcuts(areOn) {
    for (const button of document.querySelectorAll("[data-key]")) {
      if (areOn) button.setAttribute("aria-keyshortcuts", button.dataset.key);
      else button.removeAttribute("aria-keyshortcuts");
      button.querySelector("kbd").hidden = !areOn;
    }
  }

  showPhase(phase, listening) {
    const [words, labels] = PHASES[phase];
    const label = labels[listening] ?? labels.any ?? words;
    if (byId("talk-label").textContent !== label) byId("talk-label").textContent = label;
    byId("phase").textContent = words;
    document.body.dataset.phase = phase;
  }

  showControls({ isConnected, isStarted, isQuiet, hasCamera }) {
    byId("connection").textContent = isConnected ? "Connected" : "Not connected";
    byId("quiet-label").textContent = isQuiet ? "Resume" : "Quiet";
    byId("commands").hidden = !isStarted;
    byId("end").hidden = !isStarted;
    byId("scene").hidden = !hasCamera;
  }

  /** @param {string} words whether pictures are kept */
  showKept(words) {
    byId("kept").textContent = words;
  }

  showCamera(words) {
    byId("camera-state").textContent = words;
  }

  showLevel() {} // nothing here moves with loudness

  showLatency() {}

  addTurn(id, role) {
    super.addTurn(id, role);
    for (const [old] of this.turns) {
      if (this.turns.size <= MOST_TURNS) break;
      this.removeTurn(old);
    }
  }

  showKind(id, kind) {
    const element = this.turns.get(id)?.element;
    if (!element || !(kind in KINDS)) return;
    element.dataset.kind = kind;
    element.querySelector(".who").textContent = KINDS[kind];
  }

  textOf(id) {
    return this.turns.get(id)?.text ?? "";
  }
}
