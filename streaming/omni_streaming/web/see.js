// The page for people who cannot see: camera, voice, keys and settings around one conversation.

import { Announcer } from "./announcer.js";
import { Camera, CameraError } from "./camera.js";
import { StillLoading } from "./conversation.js";
import { Earcons } from "./earcons.js";
import { Frames } from "./frames.js";
import { Microphone, MicrophoneError } from "./microphone.js";
import { Player, SoundError } from "./player.js";
import { BAD_KEY, takeKey } from "./realtime.js";
import { wire } from "./see-controls.js";
import { NO_DESCRIBING, Sight } from "./see-conversation.js";
import { Settings } from "./see-settings.js";
import { SightView } from "./see-view.js";

const BACKOFF_MS = [1000, 2000, 4000, 8000, 15_000, 30_000];
const FINAL = new Set([BAD_KEY, NO_DESCRIBING, 1008, 4000]); // trying again would change nothing
const SHORTEST_HOLD_MS = 250; // a tap is no question
const HAZARD_SHOWN_MS = 10_000;
const BAD_SIGNS = "A key has no spaces or special signs.";
const LOADING = "The models are still loading. Omni begins by itself when they are ready.";
const FROZEN =
  "The camera picture has not changed at all for 10 seconds. The camera may be stuck. Press Switch " +
  "camera to start it again.";
const TAKEN = "The camera was taken away. Connect it again, then press Switch camera.";
const RECORDED = "This server keeps the pictures of your camera.";
const NO_CAMERA = "There is no camera picture. Press Switch camera to try again.";
const NO_VOICE = " You can use keys and buttons.";
const HELP =
  "Space or Enter: talk. F: what is in front of me. T: read text. R: repeat. M: more. Q: quiet, and " +
  "again to resume. Escape: stop speaking. C: switch camera. Question mark: this help.";
const byId = (id) => document.getElementById(id);

class App {
  constructor() {
    this.settings = new Settings();
    this.view = new SightView((words) => this.announcer.tell(words));
    this.earcons = new Earcons();
    this.announcer = new Announcer(
      byId("announcer"),
      byId("hazard"),
      () => this.conversation.speakingItem !== null,
    );
    this.conversation = new Sight(this.view, {
      onChange: () => this.refresh(),
      onKeyNeeded: () => this.askForKey("That key was not accepted."),
      onLost: (words) => this.lose(words),
      session: () => this.settings.toSession(this),
      onSentence: (words) => this.announcer.sentence(words),
      onHazard: () => this.earcons.play("hazard"),
      onHazardWords: (words) => this.warn(words),
      onQuiet: (isQuiet) => {
        this.isQuiet = isQuiet ?? false;
        this.refresh();
      },
      onRecorded: (isRecorded) => this.noteRecorded(isRecorded),
    });
    this.camera = new Camera(byId("preview"), {
      onLost: () => this.cameraFailed("Camera lost", TAKEN),
      onFrozen: (isFrozen) => this.cameraFroze(isFrozen),
    });
    this.frames = new Frames(this.camera, {
      bufferedBytes: () => this.conversation.bufferedBytes,
      send: (image, takenMs) => this.conversation.sendFrame(image, takenMs),
    });
    this.key = takeKey();
    this.microphone = null;
    this.isMicrophoneKnown = false; // whether there is one, since the connection was made
    this.isStarted = false;
    this.hasStarted = false; // once, in this visit
    this.isConnecting = false;
    this.isLost = false;
    this.isMuted = false;
    this.isQuiet = false;
    this.isRecorded = false; // what the camera shows is kept at the server
    this.isTalking = false; // a turn begun by hand
    this.talkingSinceMs = 0;
    this.notKept = byId("kept").textContent;
    this.wake = null; // ends a wait before the next attempt
    setInterval(() => this.beat(), 1000);
    this.applySettings();
  }

  get hasSound() {
    return this.conversation.player !== null;
  }

  /** A picture that stands still is not described as if it were what is there now. */
  get hasCamera() {
    return this.camera.isOn && !this.camera.isFrozen;
  }

  // --- Beginning and end ---------------------------------------------------------------------------

  async start() {
    this.isStarted = true;
    this.hasStarted = true;
    this.isMicrophoneKnown = false;
    this.isLost = false;
    this.view.hideNotice();
    this.refresh();
    this.announcer.tell("Starting.");
    await this.openAudio();
    await this.openCamera();
    this.frames.start();
    this.keepAwake();
    await this.connect();
    if (this.conversation.isConnected) await this.openMicrophone();
  }

  end() {
    this.isStarted = false;
    this.isLost = false;
    this.wake?.();
    this.frames.stop();
    this.announcer.clear();
    this.conversation.close();
    this.closeMicrophone();
    if (this.camera.isOn) this.earcons.play("cameraOff");
    this.camera.close();
    this.view.showCamera("Camera off");
    this.view.hideNotice();
    this.lock?.release();
    this.announcer.tell("Omni has ended.");
    this.refresh();
  }

  async openAudio() {
    if (this.hasSound) return this.conversation.player.context.resume();
    try {
      const player = await Player.open((report) => this.conversation.heard(report));
      this.conversation.player = player;
      this.earcons.open(player.context);
      await player.context.resume();
    } catch (error) {
      if (!(error instanceof SoundError)) throw error;
      this.applySettings(); // nobody but a screen reader can speak now
      this.view.showNotice(error.message);
    }
  }

  /** A phone that goes to sleep sees nothing. */
  async keepAwake() {
    try {
      this.lock = await navigator.wakeLock?.request("screen");
    } catch {
      // Low battery, or the page is hidden: asked for again when it is shown.
    }
  }

  // --- The camera ----------------------------------------------------------------------------------

  async openCamera(open = () => this.camera.open()) {
    try {
      const result = await open();
      this.earcons.play("cameraOn");
      this.view.showCamera(`${this.camera.name} on`);
      if (byId("notice").dataset.about === "camera") this.hideCameraNotice();
      this.tellCamera();
      return result;
    } catch (error) {
      if (!(error instanceof CameraError)) throw error;
      this.cameraFailed(`No camera (${error.state})`, error.message);
      return 0;
    }
  }

  async switchCamera() {
    const wasOn = this.camera.isOn;
    const num = await this.openCamera(() => this.camera.switch());
    if (!this.camera.isOn) return;
    const only = wasOn && num < 2 ? " There is no other one." : "";
    this.announcer.tell(`${this.camera.name}.${only}`);
  }

  cameraFailed(state, words) {
    this.earcons.play("cameraOff");
    this.view.showCamera(state);
    this.view.showNotice(words);
    byId("notice").dataset.about = "camera";
    this.tellCamera();
  }

  cameraFroze(isFrozen) {
    this.view.showCamera(isFrozen ? "Picture frozen" : `${this.camera.name} on`);
    if (this.conversation.isConnected) this.conversation.update();
    if (!isFrozen) {
      this.hideCameraNotice();
      this.announcer.tell("The picture moves again.");
      return;
    }
    this.view.showNotice(FROZEN);
    byId("notice").dataset.about = "camera";
  }

  hideCameraNotice() {
    delete byId("notice").dataset.about;
    this.view.hideNotice();
  }

  /** Without a camera the server has nothing to describe, and would miss it aloud. */
  tellCamera() {
    this.conversation.update();
    this.refresh();
  }

  /** Said once; the next server may keep none. */
  noteRecorded(isRecorded) {
    if (isRecorded === this.isRecorded) return;
    this.isRecorded = isRecorded;
    this.view.showKept(isRecorded ? RECORDED : this.notKept);
    if (isRecorded) this.announcer.tell(RECORDED);
  }

  // --- The connection ------------------------------------------------------------------------------

  /** Connect, and go on trying; resolves when connected or when that is hopeless. */
  async connect() {
    if (this.isConnecting) return;
    this.isConnecting = true;
    let isWaiting = false; // for the models
    for (let attempt = 0; this.isStarted; attempt += 1) {
      this.refresh();
      try {
        await this.conversation.connect(this.key);
        break;
      } catch (error) {
        if (error instanceof SyntaxError) this.askForKey(BAD_SIGNS);
        const isHopeless = FINAL.has(this.conversation.lostCode) || error instanceof SyntaxError;
        if (isHopeless && !(error instanceof StillLoading)) break;
        if (error instanceof StillLoading && !isWaiting) this.view.showNotice(LOADING);
        isWaiting ||= error instanceof StillLoading;
      }
      const waitMs = BACKOFF_MS[Math.min(attempt, BACKOFF_MS.length - 1)];
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, waitMs);
        this.wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      this.wake = null;
    }
    this.isConnecting = false;
    if (this.conversation.isConnected) {
      this.earcons.play("connected");
      if (this.isLost) this.announcer.tell("Connected again.");
      this.isLost = false;
      if (byId("notice").dataset.about !== "camera") this.view.hideNotice();
    }
    this.refresh();
  }

  async lose(words) {
    const isNews = !this.isLost;
    this.isLost = true;
    this.isMicrophoneKnown = false;
    this.closeMicrophone();
    if (isNews) {
      const isFinal = FINAL.has(this.conversation.lostCode);
      this.earcons.play("lost");
      delete byId("notice").dataset.about;
      this.view.showNotice(isFinal ? words : `${words} Trying again.`, { canReconnect: true });
    }
    this.refresh();
    if (this.isConnecting || FINAL.has(this.conversation.lostCode)) return;
    await this.reconnect();
  }

  async reconnect() {
    this.wake?.();
    await this.connect();
    if (this.conversation.isConnected && this.microphone === null) await this.openMicrophone();
  }

  /** Ask for a key; `problem` is what is wrong with the one that was given, if one was. */
  askForKey(problem) {
    this.closeMicrophone();
    this.isLost = true;
    this.isMicrophoneKnown = false;
    byId("key-wrong").textContent = problem;
    byId("key-wrong").hidden = this.key === "";
    byId("key").value = "";
    if (!byId("key-dialog").open) byId("key-dialog").showModal();
    const wrong = this.key === "" ? "" : `${problem} `;
    this.announcer.tell(`${wrong}This server asks for an API key.`);
    this.refresh();
  }

  // --- Talking -------------------------------------------------------------------------------------

  async openMicrophone() {
    if (this.microphone !== null || this.isAsking) return;
    this.isAsking = true;
    try {
      if (!this.hasSound) return;
      this.microphone = await Microphone.open(
        this.conversation.player.context,
        (chunk) => this.conversation.sendAudio(chunk),
        () => {
          this.closeMicrophone();
          this.view.showNotice(`The microphone was disconnected.${NO_VOICE}`);
          this.refresh();
        },
      );
      if (!this.conversation.isConnected) this.closeMicrophone(); // lost while the user was asked
      this.mute();
    } catch (error) {
      if (!(error instanceof MicrophoneError)) throw error;
      this.view.showNotice(microphoneWords(error.message));
    } finally {
      this.isAsking = false;
      this.isMicrophoneKnown = this.conversation.isConnected; // else it is asked for again
      this.refresh();
    }
  }

  closeMicrophone() {
    this.microphone?.close();
    this.microphone = null;
    this.isTalking = false;
  }

  /** The microphone is heard when it should be, by the way of listening chosen. */
  mute() {
    if (this.microphone === null) return;
    const isHeard = this.settings.listening === "always" ? !this.isMuted : this.isTalking;
    this.microphone.muted = !isHeard;
  }

  /** What the large button does now. */
  async press() {
    if (!this.isStarted) return this.start();
    if (this.isLost) return this.reconnect();
    if (!this.conversation.isConnected) return;
    if (this.microphone === null) return this.openMicrophone();
    if (this.settings.listening !== "always") {
      return this.isTalking ? this.endTalk() : this.beginTalk();
    }
    if (this.conversation.speakingItem !== null) return this.stopSpeaking();
    this.isMuted = !this.isMuted;
    this.mute();
    this.announcer.tell(this.isMuted ? "Microphone off." : "Listening.");
    this.refresh();
  }

  get canHold() {
    return (
      this.settings.listening === "hold" &&
      this.conversation.isConnected &&
      this.microphone !== null
    );
  }

  async beginTalk() {
    if (this.isTalking) return;
    this.isTalking = true;
    this.talkingSinceMs = performance.now();
    this.announcer.clear();
    this.refresh();
    await this.conversation.beginTurn();
    this.earcons.play("talk");
    this.mute();
  }

  endTalk() {
    if (!this.isTalking) return;
    this.isTalking = false;
    this.mute();
    this.refresh();
    if (!this.conversation.isConnected) return;
    if (performance.now() - this.talkingSinceMs < SHORTEST_HOLD_MS) {
      this.announcer.tell("Hold the button while you talk.");
      return;
    }
    this.earcons.play("sent");
    this.conversation.endTurn();
  }

  // --- Commands ------------------------------------------------------------------------------------

  async run(command) {
    if (command === "help") return this.announcer.tell(HELP);
    if (!this.isStarted) return;
    if (command === "camera") return this.switchCamera();
    if (command === "stop") return this.stopSpeaking();
    if (!this.conversation.isConnected) return this.announcer.tell("Not connected.");
    if (!this.hasCamera) return this.announcer.tell(this.camera.isOn ? FROZEN : NO_CAMERA);
    if (command === "quiet") {
      this.isQuiet = !this.isQuiet;
      this.announcer.clear();
      this.conversation.command(this.isQuiet ? "quiet" : "resume");
      return this.refresh();
    }
    this.conversation.command(command);
  }

  async stopSpeaking() {
    this.announcer.clear();
    if (this.conversation.isConnected) await this.conversation.stopSpeaking();
  }

  warn(words) {
    this.announcer.hazard(words);
    clearTimeout(this.hazardTimer);
    this.hazardTimer = setTimeout(() => {
      byId("hazard").textContent = "";
    }, HAZARD_SHOWN_MS);
  }

  // --- State ---------------------------------------------------------------------------------------

  beat() {
    const isSounding = this.conversation.speakingItem !== null || this.conversation.isUserSpeaking;
    if (isSounding) this.earcons.noteSound();
    else if (this.conversation.isConnected) this.earcons.beat();
  }

  applySettings() {
    this.earcons.isOn = this.settings.earcons;
    this.announcer.rate = Number(this.settings.speed);
    const isReader = this.settings.isReader || (this.hasStarted && !this.hasSound);
    if (this.announcer.isReader !== isReader) this.announcer.setReader(isReader);
    this.view.showShortcuts(this.settings.shortcuts);
    this.mute();
  }

  changeSetting(name) {
    this.applySettings();
    const isOwn = name === "earcons" || name === "shortcuts";
    if (!isOwn && this.conversation.isConnected) this.conversation.update();
    this.refresh();
  }

  get phase() {
    if (!this.isStarted) return this.hasStarted ? "ended" : "idle";
    if (this.isLost) return "lost";
    if (!this.conversation.isConnected) return "connecting";
    if (this.isTalking) return "talking";
    if (this.conversation.phase !== null) return this.conversation.phase;
    if (this.microphone === null) return this.isMicrophoneKnown ? "ready" : "connecting";
    return this.isMuted && this.settings.listening === "always" ? "muted" : "listening";
  }

  refresh() {
    this.view.showPhase(this.phase, this.settings.listening);
    this.view.showControls({
      isConnected: this.conversation.isConnected,
      isStarted: this.isStarted,
      isQuiet: this.isQuiet,
      hasCamera: this.camera.isOn,
    });
  }
}

function microphoneWords(message) {
  return `${message.split(" You can type")[0].replaceAll("Start talking", "the large button")}${NO_VOICE}`;
}

const app = new App();
wire(app);
app.refresh();
// Refused where nobody vouches for the certificate: then the page cannot be installed, that is all.
navigator.serviceWorker?.register("see-worker.js", { scope: "see" }).catch(() => {});
