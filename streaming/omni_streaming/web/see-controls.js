// Buttons and keys of the page that describes: which press does what.

import { passKey } from "./realtime.js";

const KEYS = {
  f: "front",
  t: "read",
  r: "repeat",
  m: "more",
  q: "quiet",
  c: "camera",
  "?": "help",
};

const byId = (id) => document.getElementById(id);

function wireTalk(app) {
  const button = byId("talk");
  let wasHeld = false; // by a finger: the click that follows is not another press
  button.addEventListener("pointerdown", (event) => {
    wasHeld = app.canHold && event.button === 0;
    if (!wasHeld) return;
    button.setPointerCapture(event.pointerId);
    app.beginTalk();
  });
  for (const type of ["pointerup", "pointercancel"]) {
    button.addEventListener(type, () => wasHeld && app.endTalk());
  }
  button.addEventListener("click", () => {
    if (!wasHeld) app.press();
    wasHeld = false;
  });
}

function wireKeys(app) {
  let heldKey = null; // while it is down, the user talks
  const isTalkKey = ({ key }) => key === " " || key === "Enter";
  const isFree = ({ target, key }) =>
    !target.closest("button, a, input, select, textarea, summary") &&
    !(key === " " && target.closest("#log")); // there it scrolls
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || document.querySelector("dialog[open]")) {
      return;
    }
    if (event.key === "Escape") app.run("stop");
    else if (isTalkKey(event)) {
      const isOnTalk = event.target.closest("#talk") !== null;
      if (!isFree(event) && !isOnTalk) return;
      if (isOnTalk && !app.canHold && heldKey === null) return; // the button’s own click
      event.preventDefault();
      if (event.repeat || heldKey !== null) return;
      if (!app.canHold) {
        app.press();
        return;
      }
      heldKey = event.key;
      app.beginTalk();
    } else if (app.settings.shortcuts && !event.repeat && !event.target.closest("input, select")) {
      const command = KEYS[event.key.toLowerCase()];
      if (command) app.run(command);
    }
  });
  document.addEventListener("keyup", (event) => {
    if (heldKey === null || event.key !== heldKey) return;
    event.preventDefault();
    heldKey = null;
    app.endTalk();
  });
  window.addEventListener("blur", () => {
    heldKey = null;
    app.endTalk();
  });
}

/** Connect everything that can be pressed to the page. */
export function wire(app) {
  wireTalk(app);
  wireKeys(app);
  for (const button of document.querySelectorAll("[data-command]")) {
    button.onclick = () => app.run(button.dataset.command);
  }
  byId("end").onclick = () => {
    app.end();
    byId("talk").focus();
  };
  byId("dismiss").onclick = () => {
    app.view.hideNotice();
    byId("talk").focus();
  };
  byId("reconnect").onclick = () => app.reconnect();
  byId("settings-open").onclick = () => byId("settings").showModal();
  app.settings.bind(byId("settings").querySelector("form"), (name) => app.changeSetting(name));
  byId("key-dialog").querySelector("form").onsubmit = () => {
    app.key = byId("key").value.trim();
    app.reconnect();
  };
  byId("key-cancel").onclick = () => byId("key-dialog").close();
  passKey(byId("other-page"), app);
  window.addEventListener("online", () => app.wake?.());
  document.addEventListener("visibilitychange", () => {
    if (document.hidden || !app.isStarted) return;
    app.wake?.();
    app.keepAwake();
  });
}
