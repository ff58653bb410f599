// Keeps the page’s own files, so that it opens (and says what is wrong) without the server.
//
// Nothing else is ever kept: no answer of the API, no picture, no sound. The server’s files come
// first; the kept ones only when it cannot be reached.

const CACHE = "omni-see-shell";
const SHELL = [
  "see",
  "see.html",
  "see.css",
  "see.js",
  "see-controls.js",
  "see-conversation.js",
  "see-settings.js",
  "see-view.js",
  "announcer.js",
  "camera.js",
  "capture-worklet.js",
  "conversation.js",
  "earcons.js",
  "frames.js",
  "icon.svg",
  "manifest.webmanifest",
  "microphone.js",
  "playback-worklet.js",
  "player.js",
  "realtime.js",
  "see-180.png",
  "see-192.png",
  "see-512.png",
  "style.css",
  "view.js",
];
const PATHS = new Set(SHELL.map((name) => new URL(name, self.location.href).pathname));

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(SHELL)));
  self.skipWaiting();
});

self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  const { origin, pathname } = new URL(url);
  if (method !== "GET" || origin !== self.location.origin || !PATHS.has(pathname)) return;
  event.respondWith(fromServerOrKept(event.request));
});

async function fromServerOrKept(request) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(new URL(request.url).pathname, response.clone());
    return response;
  } catch (error) {
    const kept = await cache.match(request, { ignoreSearch: true });
    if (kept === undefined) throw error;
    return kept;
  }
}
