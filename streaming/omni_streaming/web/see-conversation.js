// A conversation that also describes: frames and commands out, kinds of descriptions in.

import { Conversation } from "./conversation.js";
import { Sentences } from "./announcer.js";

const CANNOT = "This server cannot describe what a camera sees.";

/** Close code of ours: the server refused the settings, and would again. */
export const NO_DESCRIBING = 4900;

export class Sight extends Conversation {
  /**
   * @param {import("./see-view.js").SightView} view
   * @param {object} handlers those of Conversation, and
   * @param {() => object} handlers.session what `session.update` has to say
   * @param {(words: string) => void} handlers.onSentence a whole sentence of what Omni says
   * @param {() => void} handlers.onHazard one begins
   * @param {(words: string) => void} handlers.onHazardWords its words, whole
   * @param {(isQuiet: boolean) => void} handlers.onQuiet the session is quiet or no longer
   * @param {(isRecorded: boolean) => void} handlers.onRecorded whether the server keeps pictures
   */
  constructor(view, handlers) {
    super(view, handlers);
    this.lostCode = null;
  }

  connect(key) {
    this.lostCode = null;
    return new Promise((resolve, reject) => {
      super.connect(key).then(resolve, reject);
      this.reject = reject;
    });
  }

  /** Whoever waits for a connection is told that there will be none. */
  close() {
    super.close();
    this.reject?.(new Error("closed"));
  }

  reset() {
    super.reset();
    this.isDescribing = false; // at the server
    this.kinds = new Map(); // response id -> omni_kind
    this.kindOf = new Map(); // item id -> omni_kind
    this.sentences = new Map(); // item id -> Sentences
  }

  /** Bytes that wait in the socket; null while nothing may be sent. */
  get bufferedBytes() {
    return this.isConnected ? this.realtime.socket.bufferedAmount : null;
  }

  configure() {
    this.update();
  }

  /** Tell the server the settings. What was said earlier is not told again: the scene is new. */
  update() {
    this.realtime?.send({ type: "session.update", session: this.handlers.session() });
  }

  sendFrame(image, takenMs) {
    if (!this.isDescribing) return;
    this.realtime.send({ type: "omni.frame.append", image, taken_ms: takenMs });
  }

  command(command) {
    this.realtime.send({ type: "omni.describe.command", command });
  }

  /** Silence now; what was not heard is taken out of the conversation. */
  async stopSpeaking() {
    if (!this.isDescribing) return this.interrupt();
    this.player?.stop(); // at once; the server ends the answer and knows what was heard
    this.isWaiting = false;
    this.command("stop");
    this.handlers.onChange();
  }

  /** The user’s turn begins by hand. */
  async beginTurn() {
    await this.interrupt();
    this.realtime?.send({ type: "input_audio_buffer.clear" });
  }

  endTurn() {
    this.realtime?.send({ type: "input_audio_buffer.commit" });
    this.realtime?.send({ type: "response.create" });
    this.wait(performance.now());
  }

  lose(code, words) {
    this.lostCode = code;
    super.lose(code, words);
  }

  receive(event) {
    const isSetting = event.type === "error" && event.error.param?.startsWith("session");
    if (isSetting && !this.isConnected) {
      this.realtime.close();
      this.reject(new Error(event.error.message));
      this.lose(NO_DESCRIBING, `${CANNOT} (${event.error.message})`);
      return;
    }
    if (event.type === "response.created") this.begin(event.response);
    super.receive(event);
    switch (event.type) {
      case "session.updated": {
        const describe = event.session.omni?.describe ?? null;
        this.isDescribing = describe !== null;
        if (describe === null) break;
        this.handlers.onQuiet(describe.quiet); // by voice, perhaps
        this.handlers.onRecorded(event.session.omni.recorded === true);
        break;
      }
      case "omni.output_audio.stop":
        this.player?.stop(); // something is more urgent
        break;
      case "input_audio_buffer.committed":
        this.view.addTurn(event.item_id, "user");
        break;
      case "response.output_item.added":
        this.kindOf.set(event.item.id, this.kinds.get(event.response_id));
        this.view.showKind(event.item.id, this.kindOf.get(event.item.id));
        this.sentences.set(event.item.id, new Sentences());
        break;
      case "response.output_audio_transcript.delta":
      case "response.output_text.delta":
        for (const words of this.sentences.get(event.item_id)?.push(event.delta) ?? []) {
          this.say(event.item_id, words);
        }
        break;
      case "response.output_item.done":
        this.finishItem(event.item);
        break;
      case "response.done":
        this.kinds.delete(event.response.id);
        break;
    }
  }

  begin(response) {
    const kind = response.metadata?.omni_kind;
    this.kinds.set(response.id, kind);
    if (kind !== "hazard") return;
    this.player?.stop(); // what was being said has ended at the server, and must end here as well
    this.handlers.onHazard();
  }

  say(item, words) {
    if (this.kindOf.get(item) !== "hazard") this.handlers.onSentence(words);
  }

  finishItem({ id, status }) {
    const rest = this.sentences.get(id)?.end();
    if (this.kindOf.get(id) === "hazard") this.handlers.onHazardWords(this.view.textOf(id));
    else if (rest && status === "completed") this.say(id, rest); // else it breaks off mid-sentence
    this.sentences.delete(id);
    this.kindOf.delete(id);
  }
}
