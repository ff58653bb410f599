// The course of a conversation: server events and playback reports in, the view and replies out.

import { BAD_KEY, Realtime } from "./realtime.js";

const REPORT_MS = 100; // how often the server hears what has been played
const QUIET = 0.004; // RMS that is silence in any room
const SPEECH_OVER_FLOOR = 3; // 10 dB
const FLOOR_RISE = 1.005; // per chunk of 20 ms: doubles in 3 s
const HARMLESS = new Set(["response_cancel_not_active"]);
const LOADING = "models_loading"; // error code of a refusal

/** The server is there, but its models are not yet. */
export class StillLoading extends Error {}

/** When the user was last heard, by loudness: for the latency that the user feels. */
class Voice {
  constructor() {
    this.floor = 1;
    this.lastHeardMs = null;
  }

  hear(level, nowMs) {
    this.floor = Math.min(level, this.floor * FLOOR_RISE);
    if (level > Math.max(QUIET, SPEECH_OVER_FLOOR * this.floor)) this.lastHeardMs = nowMs;
  }
}

export class Conversation {
  /**
   * @param {import("./view.js").View} view
   * @param {object} handlers
   * @param {() => void} handlers.onChange the phase or what can be done may have changed
   * @param {() => void} handlers.onKeyNeeded there is none, or it was not accepted
   * @param {(words: string) => void} handlers.onLost
   */
  constructor(view, handlers) {
    this.view = view;
    this.handlers = handlers;
    this.player = null; // without one, answers are written
    this.reset();
  }

  reset() {
    this.realtime = null;
    this.isConnected = false;
    this.refusal = null; // error code sent before a session was ready
    this.responseId = null;
    this.isUserSpeaking = false;
    this.speakingItem = null; // whose sound is being played
    this.isWaiting = false; // for an answer's first sound
    this.askedAtMs = null; // when the user had finished
    this.truncates = null; // item whose unheard rest the user does not want
    this.voice = new Voice();
    this.reportedMs = 0;
  }

  /**
   * Open a session; what was said before is told to it. Resolves once it is ready.
   * @throws {StillLoading} try again in some seconds; nothing else is told of it
   */
  connect(key) {
    this.close();
    return new Promise((resolve, reject) => {
      const realtime = new Realtime(key, {
        onEvent: (event) => {
          this.receive(event);
          if (event.type === "session.updated" && !this.isConnected) {
            this.isConnected = true;
            this.handlers.onChange();
            resolve();
          }
        },
        onClose: (code, words) => {
          const isLoading = this.refusal === LOADING;
          if (isLoading) this.reset();
          else this.lose(code, words);
          reject(isLoading ? new StillLoading(words) : new Error(words));
        },
      });
      this.realtime = realtime;
    });
  }

  close() {
    this.player?.stop();
    this.realtime?.close();
    this.reset();
  }

  lose(code, words) {
    this.player?.stop();
    for (const id of this.view.turns.keys()) this.view.settle(id);
    this.reset();
    if (code === BAD_KEY) this.handlers.onKeyNeeded();
    else this.handlers.onLost(words);
  }

  get canStop() {
    return this.isConnected && (this.responseId !== null || this.speakingItem !== null);
  }

  /** One of the view’s phases while connected, or null when nobody is at it. */
  get phase() {
    if (this.isUserSpeaking) return "hearing";
    if (this.speakingItem !== null) return "speaking";
    return this.isWaiting ? "thinking" : null;
  }

  sendAudio({ pcm, level }) {
    if (!this.isConnected) return;
    this.voice.hear(level, performance.now());
    this.realtime.sendAudio(pcm);
  }

  async sendText(text) {
    const id = newId();
    await this.interrupt();
    this.view.addTurn(id, "user");
    this.view.setText(id, text);
    this.view.settle(id);
    this.realtime.send({ type: "conversation.item.create", item: textItem(id, "user", text) });
    const response = this.player === null ? { output_modalities: ["text"] } : {};
    this.realtime.send({ type: "response.create", response });
    this.wait(performance.now());
  }

  /** Stop the answer; what was not heard is taken out of the conversation. */
  async interrupt() {
    if (this.responseId !== null) this.realtime.send({ type: "response.cancel" });
    this.truncates = this.speakingItem;
    this.isWaiting = false;
    await this.player?.stop();
    this.handlers.onChange();
  }

  wait(sinceMs) {
    this.isWaiting = true;
    this.askedAtMs = sinceMs;
    this.handlers.onChange();
  }

  receive(event) {
    switch (event.type) {
      case "session.created":
        this.configure();
        break;
      case "input_audio_buffer.speech_started":
        this.player?.stop(); // first of all: the user is speaking over it
        this.isUserSpeaking = true;
        this.isWaiting = false;
        this.view.addTurn(event.item_id, "user");
        break;
      case "input_audio_buffer.speech_stopped":
        this.isUserSpeaking = false;
        this.wait(this.voice.lastHeardMs); // the server says when it was sure, which is later
        break;
      case "conversation.item.input_audio_transcription.delta":
        this.view.addTurn(event.item_id, "user");
        this.view.appendText(event.item_id, event.delta);
        break;
      case "conversation.item.input_audio_transcription.completed":
        this.transcribed(event.item_id, event.transcript.trim());
        break;
      case "conversation.item.input_audio_transcription.failed":
        this.view.note(event.item_id, "not understood");
        this.view.settle(event.item_id);
        break;
      case "response.created":
        this.responseId = event.response.id;
        this.isWaiting = true;
        break;
      case "response.output_item.added":
        if (event.item.type === "message") this.view.addTurn(event.item.id, "assistant");
        break;
      case "response.output_audio_transcript.delta":
      case "response.output_text.delta":
        this.view.appendText(event.item_id, event.delta);
        break;
      case "response.output_audio.delta":
        this.player?.push(event.item_id, event.delta);
        break;
      case "response.output_audio.done":
        this.player?.end(event.item_id);
        break;
      case "response.done":
        this.finish(event.response);
        break;
      case "error":
        // A refused connection says why when it is closed as well.
        if (!this.isConnected) this.refusal = event.error.code;
        else if (!HARMLESS.has(event.error.code)) {
          this.view.showNotice(event.error.message);
        }
        break;
    }
    this.handlers.onChange();
  }

  configure() {
    const turn_detection = { type: "semantic_vad" }; // waits longer where a sentence is not whole
    const audio = { input: { transcription: { model: "whisper-1" }, turn_detection } };
    this.realtime.send({ type: "session.update", session: { type: "realtime", audio } });
    for (const [id, { role, text }] of this.view.turns) {
      if (!text) continue;
      this.realtime.send({
        type: "conversation.item.create",
        item: textItem(id.slice(0, 32), role, text),
      });
    }
  }

  transcribed(id, transcript) {
    if (transcript) {
      this.view.addTurn(id, "user");
      this.view.setText(id, transcript);
      this.view.settle(id);
      return;
    }
    this.view.removeTurn(id); // a noise without words
    if (this.responseId === null && this.speakingItem === null) this.isWaiting = false;
  }

  finish({ output, status, status_details: details }) {
    this.responseId = null;
    let hasSound = false;
    for (const { id } of output) {
      this.view.settle(id);
      if (status === "cancelled" && this.speakingItem !== id) this.view.markInterrupted(id);
      if (status === "incomplete") this.view.note(id, "cut short");
      hasSound ||= this.player?.item === id;
    }
    if (!hasSound) this.isWaiting = false;
    if (status === "failed") {
      this.view.showNotice(details?.error?.message ?? "The answer failed. Please ask again.");
    }
  }

  /** What the player says about itself. */
  heard({ state, item, playedMs, share, level }) {
    this.view.showLevel(level);
    if (state === "started") {
      this.speakingItem = item;
      this.reportedMs = 0;
      if (this.isWaiting && this.askedAtMs !== null) {
        const nowMs = performance.now() + this.player.latencyMs;
        this.view.showLatency(item, nowMs - this.askedAtMs);
      }
      this.isWaiting = false;
      this.askedAtMs = null;
    }
    const isOver = state === "ended" || state === "stopped";
    if (isOver || playedMs - this.reportedMs >= REPORT_MS) {
      this.reportedMs = playedMs;
      this.realtime?.send({
        type: "omni.output_audio.played",
        item_id: item,
        played_ms: playedMs,
      });
    }
    if (state === "stopped") this.cut(item, playedMs, share);
    if (isOver) {
      this.speakingItem = null;
      this.truncates = null;
    }
    this.handlers.onChange();
  }

  cut(item, playedMs, share) {
    this.view.markInterrupted(item);
    this.view.cut(item, share);
    if (this.truncates !== item) return; // the server knows: it heard the user speak
    this.realtime?.send({
      type: "conversation.item.truncate",
      item_id: item,
      content_index: 0,
      audio_end_ms: playedMs,
    });
  }
}

function newId() {
  return `item_${crypto.getRandomValues(new Uint32Array(3)).join("")}`.slice(0, 32);
}

function textItem(id, role, text) {
  const type = role === "user" ? "input_text" : "output_text";
  return { id, type: "message", role, content: [{ type, text }] };
}
