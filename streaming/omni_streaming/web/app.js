// The page: buttons, keys and audio devices around one conversation.

import { Conversation, StillLoading } from "./conversation.js";
import { Microphone, MicrophoneError } from "./microphone.js";
import { Player, SoundError } from "./player.js";
import { passKey, takeKey } from "./realtime.js";
import { View } from "./view.js";

const RETRY_MS = 3000; // while the models are loading
const LOADING = "The models are still loading. Omni connects by itself when they are ready.";
const BAD_KEY = "That key was not accepted.";

const byId = (id) => document.getElementById(id);

class App {
  constructor() {
    this.view = new View();
    this.conversation = new Conversation(this.view, {
      onChange: () => this.refresh(),
      onKeyNeeded: () => this.askForKey(BAD_KEY),
      onLost: (words) => this.lose(words),
    });
    this.key = takeKey();
    this.opening = null; // promise of the player
    this.noSound = null; // why there is none, in words
    this.microphone = null;
    this.isAsking = false; // the user for the microphone
    this.wantsVoice = false;
    this.isMuted = false;
    this.connecting = null; // promise of whether it will be connected
    this.isLost = false;
  }

  /** Take part by voice. Without a connection nobody is asked for the microphone. */
  async talk() {
    this.isMuted = false;
    await this.join();
  }

  async join() {
    this.wantsVoice = true;
    if (this.connecting === null) this.view.hideNotice();
    const hasSound = await this.openAudio();
    if ((await this.connect()) && hasSound) await this.openMicrophone();
  }

  /** Connect again, with the microphone if it was wanted. */
  async reconnect() {
    this.view.hideNotice();
    if (this.wantsVoice) return this.join();
    await this.openAudio();
    return this.connect();
  }

  end() {
    this.wantsVoice = false;
    this.conversation.close();
    this.closeMicrophone();
    this.isMuted = false;
    this.isLost = false;
    this.view.hideNotice();
    this.refresh();
  }

  /** Say it in writing; false when that was not possible, or an earlier one still waits. */
  async sendText(text) {
    if (this.connecting === null) this.view.hideNotice();
    await this.openAudio();
    if (this.connecting !== null || !(await this.connect())) return false;
    await this.conversation.sendText(text);
    return true;
  }

  /** Whether there is sound now; where not, connect() says why. Tried again each time. */
  async openAudio() {
    this.opening ??= Player.open((report) => this.conversation.heard(report));
    try {
      this.conversation.player = await this.opening;
    } catch (error) {
      if (!(error instanceof SoundError)) throw error;
      this.opening = null;
      this.noSound = error.message;
      return false;
    }
    this.noSound = null;
    await this.context.resume();
    return true;
  }

  get context() {
    return this.conversation.player.context;
  }

  /** Whether there is a connection now; waits while the server loads its models. */
  async connect() {
    const isConnected =
      this.conversation.isConnected || (await (this.connecting ?? this.beginConnection()));
    if (isConnected && this.noSound !== null) this.view.showNotice(this.noSound);
    return isConnected;
  }

  async beginConnection() {
    this.isLost = false;
    this.connecting = this.keepTrying();
    this.refresh();
    try {
      return await this.connecting;
    } finally {
      this.connecting = null;
      this.refresh();
    }
  }

  async keepTrying() {
    for (let isWaiting = false; ; ) {
      try {
        await this.conversation.connect(this.key);
        if (isWaiting) this.view.hideNotice();
        return true;
      } catch (error) {
        if (error instanceof SyntaxError) this.askForKey("A key has no spaces or special signs.");
        if (!(error instanceof StillLoading)) return false; // shown by lose() or askForKey()
      }
      if (!isWaiting) this.view.showNotice(LOADING);
      isWaiting = true;
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  async openMicrophone() {
    if (this.microphone !== null || this.isAsking) return;
    this.isAsking = true;
    try {
      this.microphone = await Microphone.open(
        this.context,
        (chunk) => this.capture(chunk),
        () => this.loseMicrophone(),
      );
      this.microphone.muted = this.isMuted;
    } catch (error) {
      if (!(error instanceof MicrophoneError)) throw error;
      this.view.showNotice(error.message);
    } finally {
      this.isAsking = false;
    }
    if (!this.conversation.isConnected) this.closeMicrophone(); // lost while the user was asked
    this.refresh();
  }

  capture(chunk) {
    if (this.conversation.speakingItem === null) this.view.showLevel(chunk.level);
    this.conversation.sendAudio(chunk);
  }

  loseMicrophone() {
    this.closeMicrophone();
    this.isMuted = false;
    this.view.showNotice("The microphone was disconnected. Press Start talking to use another.");
    this.refresh();
  }

  closeMicrophone() {
    this.microphone?.close();
    this.microphone = null;
    this.view.showLevel(0);
  }

  toggleMute() {
    if (this.microphone === null) return;
    this.isMuted = !this.isMuted;
    this.microphone.muted = this.isMuted;
    this.refresh();
  }

  stop() {
    if (this.conversation.canStop) this.conversation.interrupt();
  }

  /** Without a connection nobody listens, so the microphone is closed; Reconnect opens it. */
  lose(words) {
    this.isLost = true;
    this.closeMicrophone();
    this.view.showNotice(words, { canReconnect: true });
    this.refresh();
  }

  /** Ask for a key; `problem` is what is wrong with the one that was given, if one was. */
  askForKey(problem) {
    this.closeMicrophone();
    byId("key-wrong").textContent = problem;
    byId("key-wrong").hidden = this.key === "";
    byId("key").value = "";
    if (!byId("key-dialog").open) byId("key-dialog").showModal();
    this.refresh();
  }

  get phase() {
    if (this.connecting !== null) return "connecting";
    if (this.isLost) return "lost";
    if (!this.conversation.isConnected) return "idle";
    if (this.conversation.phase !== null) return this.conversation.phase;
    if (this.microphone === null) return "ready";
    return this.isMuted ? "muted" : "listening";
  }

  refresh() {
    this.view.showPhase(this.phase, this.microphone !== null);
    this.view.showControls({
      isConnected: this.conversation.isConnected,
      hasMicrophone: this.microphone !== null,
      isMuted: this.isMuted,
      canStop: this.conversation.canStop,
    });
  }
}

function wire(app) {
  byId("talk").onclick = () => (app.microphone === null ? app.talk() : app.end());
  byId("mute").onclick = () => app.toggleMute();
  byId("stop").onclick = () => app.stop();
  byId("dismiss").onclick = () => app.view.hideNotice();
  byId("reconnect").onclick = () => app.reconnect();
  byId("composer").onsubmit = async (event) => {
    event.preventDefault();
    const text = byId("message").value.trim();
    if (!text || !(await app.sendText(text))) return;
    if (byId("message").value.trim() === text) byId("message").value = "";
  };
  byId("key-dialog").querySelector("form").onsubmit = () => {
    app.key = byId("key").value.trim();
    app.reconnect();
  };
  byId("key-cancel").onclick = () => byId("key-dialog").close();
  passKey(byId("other-page"), app);
  document.addEventListener("keydown", (event) => {
    if (byId("key-dialog").open) return;
    if (event.key === "Escape") app.stop();
    if (event.altKey && event.code === "KeyM") {
      event.preventDefault();
      app.toggleMute();
    }
  });
}

function wireTheme() {
  const button = byId("theme");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  let theme = null; // until chosen: as the system says
  const isDark = () => (theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
  const show = () => {
    if (theme !== null) document.documentElement.dataset.theme = theme;
    button.textContent = isDark() ? "Light colours" : "Dark colours";
  };
  button.onclick = () => {
    theme = isDark() ? "light" : "dark";
    show();
  };
  prefersDark.addEventListener("change", show);
  show();
}

const app = new App();
wire(app);
wireTheme();
app.refresh();
