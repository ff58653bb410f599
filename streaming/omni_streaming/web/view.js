// Everything that is shown: the phase, the transcript, notices. Knows no sockets and no audio.

const PHASES = {
  idle: ["Ready when you are", "Press Start talking, or type below."],
  connecting: ["Connecting", "One moment."],
  ready: ["Ready", "Type a message, or press Start talking."],
  listening: ["Listening", "Speak whenever you like."],
  muted: ["Muted", "Omni cannot hear you."],
  hearing: ["You are speaking", "Omni is listening."],
  thinking: ["Thinking", "An answer is on its way."],
  speaking: ["Omni is speaking", "Just speak to interrupt."],
  lost: ["Not connected", "What was said is still here."],
};
const NO_MICROPHONE = "Press Stop, or write, to interrupt.";
const ANNOUNCED = new Set(["listening", "ready", "muted", "lost"]); // the rest is heard anyway
const NAMES = { user: "You", assistant: "Omni" };

const byId = (id) => document.getElementById(id);

export class View {
  constructor() {
    this.turns = new Map(); // item id -> {element, role, text, isCut, isInterrupted}
    this.followEnd(byId("log"));
  }

  /** Keep the end in view, if it is, when the box changes size: no scroll event tells of that. */
  followEnd(log) {
    let isAtEnd = true;
    let height = log.clientHeight;
    log.addEventListener("scroll", () => {
      if (log.clientHeight === height) isAtEnd = isNearEnd(log);
    });
    new ResizeObserver(() => {
      if (isAtEnd) log.scrollTop = log.scrollHeight;
      isAtEnd = isNearEnd(log);
      height = log.clientHeight;
    }).observe(log);
  }

  showPhase(phase, hasMicrophone) {
    const [words, hint] = PHASES[phase];
    byId("hint").textContent = phase === "speaking" && !hasMicrophone ? NO_MICROPHONE : hint;
    if (document.body.dataset.phase === phase) return;
    document.body.dataset.phase = phase;
    byId("phase").textContent = words;
    if (ANNOUNCED.has(phase)) byId("announcer").textContent = words;
  }

  showControls({ isConnected, hasMicrophone, isMuted, canStop }) {
    byId("connection").textContent = isConnected ? "Connected" : "Not connected";
    byId("talk").textContent = hasMicrophone ? "End" : "Start talking";
    byId("talk").classList.toggle("primary", !hasMicrophone);
    byId("mute").disabled = !hasMicrophone;
    byId("mute").setAttribute("aria-pressed", String(isMuted));
    byId("stop").disabled = !canStop;
  }

  /** Loudness 0..1 of whoever is speaking, for the orb. */
  showLevel(rms) {
    const level = Math.min(1, Math.max(0, 1 + Math.log10(rms + 1e-4) / 2.2));
    document.body.style.setProperty("--level", level.toFixed(3));
  }

  showNotice(words, { canReconnect = false } = {}) {
    byId("notice-text").textContent = words;
    byId("reconnect").hidden = !canReconnect;
    byId("notice").hidden = false;
  }

  hideNotice() {
    byId("notice").hidden = true;
  }

  /** Begin a turn's entry unless it is there. It is busy until settled: read out once, whole. */
  addTurn(id, role) {
    if (this.turns.has(id)) return;
    const element = document.createElement("li");
    element.className = `turn ${role}`;
    element.dataset.item = id;
    element.setAttribute("aria-busy", "true");
    for (const [className, text] of [
      ["who", NAMES[role]],
      ["text", ""],
      ["note", ""],
    ]) {
      const part = document.createElement("p");
      part.className = className;
      part.textContent = text;
      element.append(part);
    }
    this.turns.set(id, { element, role, text: "", isCut: false, isInterrupted: false });
    this.keepBottom(() => byId("turns").append(element));
    byId("empty").hidden = true;
  }

  appendText(id, delta) {
    const turn = this.turns.get(id);
    if (turn && !turn.isCut) this.setText(id, turn.text + delta);
  }

  setText(id, text) {
    const turn = this.turns.get(id);
    if (!turn) return;
    turn.text = text;
    this.keepBottom(() => {
      turn.element.querySelector(".text").textContent = text;
    });
  }

  /** Only about this share of a turn was heard: the rest is shown as such and not told again. */
  cut(id, share) {
    const turn = this.turns.get(id);
    if (!turn) return;
    const end = turn.text.lastIndexOf(" ", Math.round(turn.text.length * share));
    const heard = share >= 1 ? turn.text : turn.text.slice(0, Math.max(0, end));
    const unheard = document.createElement("span");
    unheard.className = "unheard";
    unheard.textContent = turn.text.slice(heard.length);
    turn.text = heard;
    turn.isCut = true;
    turn.element.querySelector(".text").replaceChildren(heard, unheard);
  }

  /** Nothing more comes of this turn. */
  settle(id) {
    this.turns.get(id)?.element.setAttribute("aria-busy", "false");
  }

  /** A short remark below a turn: how long it took, that it was interrupted. */
  note(id, words) {
    const turn = this.turns.get(id);
    if (!turn) return;
    const note = turn.element.querySelector(".note");
    note.textContent = note.textContent ? `${note.textContent} · ${words}` : words;
  }

  /** Said once, whoever notices first: the player that was stopped or the server. */
  markInterrupted(id) {
    const turn = this.turns.get(id);
    if (!turn || turn.isInterrupted) return;
    turn.isInterrupted = true;
    this.note(id, "interrupted");
  }

  removeTurn(id) {
    this.turns.get(id)?.element.remove();
    this.turns.delete(id);
    byId("empty").hidden = this.turns.size > 0;
  }

  /** @param {number} ms from the end of the user’s turn to the first sound */
  showLatency(id, ms) {
    const seconds = `${(ms / 1000).toFixed(2)} s`;
    this.note(id, `after ${seconds}`);
    byId("latency").textContent = `Last answer began after ${seconds}`;
    document.body.dataset.latencyMs = String(Math.round(ms));
  }

  /** Change the transcript, staying at its end if that is what was in view. */
  keepBottom(change) {
    const log = byId("log");
    const wasAtEnd = isNearEnd(log);
    change();
    if (wasAtEnd) log.scrollTop = log.scrollHeight;
  }
}

function isNearEnd(log) {
  return log.scrollHeight - log.scrollTop - log.clientHeight < 48;
}
