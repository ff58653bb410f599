// One Realtime session over a WebSocket: sends events, hands on what comes.

const CLOSED = {
  1001: "The server ended the session after a long time or a long silence.",
  1008: "The server does not accept connections from this page.",
  1009: "Something sent was too large for the server.",
  1011: "The server had an internal error.",
};
const LOST = "The connection to the server was lost.";
const STOPPED = "The server was stopped or is restarting."; // it does not know which itself
const GOING = 1012;
const TRY_LATER = 1013; // of several reasons, and only the server knows which

/** Socket close code for a missing or wrong key. */
export const BAD_KEY = 3000;

/** The API key in the page's address (#key=...), of which it is taken out; "" without one. */
export function takeKey() {
  const key = new URLSearchParams(location.hash.slice(1)).get("key") ?? "";
  if (key) history.replaceState(history.state, "", location.pathname + location.search);
  return key;
}

/** Give the other page the key of this one: its address has it only while it is opened. */
export function passKey(link, app) {
  link.onclick = () => {
    link.hash = app.key ? new URLSearchParams({ key: app.key }) : "";
    setTimeout(() => (link.hash = ""));
  };
}

export class Realtime {
  /**
   * @param {string} key API key, or "" for none
   * @param {object} handlers
   * @param {(event: object) => void} handlers.onEvent a server event
   * @param {(code: number, words: string) => void} handlers.onClose not called after close()
   * @throws {SyntaxError} the key has characters that a browser cannot send
   */
  constructor(key, { onEvent, onClose }) {
    const url = new URL("v1/realtime", location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const protocols = ["realtime"];
    if (key) protocols.push(`openai-insecure-api-key.${key}`);
    this.socket = new WebSocket(url, protocols);
    this.socket.onmessage = ({ data }) => onEvent(JSON.parse(data));
    this.socket.onclose = ({ code, reason }) => onClose(code, describe(code, reason));
  }

  get isOpen() {
    return this.socket.readyState === WebSocket.OPEN;
  }

  send(event) {
    if (this.isOpen) this.socket.send(JSON.stringify(event));
  }

  /** @param {ArrayBuffer} pcm int16, 24 kHz */
  sendAudio(pcm) {
    this.send({ type: "input_audio_buffer.append", audio: toBase64(new Uint8Array(pcm)) });
  }

  close() {
    this.socket.onmessage = null;
    this.socket.onclose = null;
    this.socket.close(1000);
  }
}

/** Why the connection ended, for the user. */
function describe(code, reason) {
  if (code === GOING) return STOPPED;
  if (code === TRY_LATER && reason) return `${reason[0].toUpperCase()}${reason.slice(1)}.`;
  const words = CLOSED[code] ?? LOST;
  return reason ? `${words} (${reason})` : words;
}

function toBase64(bytes) {
  return btoa(String.fromCharCode(...bytes)); // 960 bytes at a time
}
