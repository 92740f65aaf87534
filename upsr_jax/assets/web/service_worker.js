// Keeps the page's files as they are fetched, so that it works without a network, and gives them
// the headers that threads need and many hosts can't send. The export puts VERSION and FILES above.

const PREFIX = `upsr ${self.registration.scope} `;
const CACHE = PREFIX + VERSION;
const OURS = new Set(FILES.map((name) => new URL(name, self.registration.scope).href));
const ISOLATION = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};

self.addEventListener("activate", (event) => {
  event.waitUntil(forgetOthers().then(() => self.clients.claim()));
});

self.addEventListener("fetch", (event) => {
  const url = event.request.url.replace(/[?#].*/, "");
  if (event.request.method === "GET" && OURS.has(url)) event.respondWith(answer(url, event));
});

async function forgetOthers() {
  const names = await caches.keys();
  const old = names.filter((name) => name.startsWith(PREFIX) && name !== CACHE);
  await Promise.all(old.map((name) => caches.delete(name)));
}

async function answer(url, event) {
  const cache = await caches.open(CACHE);
  let response = await cache.match(url);
  if (!response) {
    response = await fetch(url, { cache: "no-cache" }); // no older version's
    // Where there is no room, the page goes on without.
    if (response.ok) event.waitUntil(cache.put(url, response.clone()).catch(() => {}));
  }
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(ISOLATION)) headers.set(name, value);
  const { body, status, statusText } = response;
  return new Response(body, { status, statusText, headers });
}
