// The page: what is chosen, shown and saved. worker.js does the work.

const SCALE = 4;
const MOST_SIDE = 16384; // of a canvas, in most browsers

const find = (id) => document.getElementById(id);
let photo; // {file, bitmap}
let worker;
let started = 0; // when the photo that is worked on was begun, or 0

/** Let service_worker.js serve this page; the first time that takes loading it once more. */
async function useServiceWorker() {
  try {
    await navigator.serviceWorker.register("service_worker.js");
    if (navigator.serviceWorker.controller) return sessionStorage.removeItem("reloaded");
    if (sessionStorage.getItem("reloaded")) return;
    sessionStorage.setItem("reloaded", "yes");
    await navigator.serviceWorker.ready;
    location.reload();
    await new Promise(() => {}); // until then
  } catch {
    // Without one it works all the same, on one thread and only with a network.
  }
}

async function hasGraphicsCard() {
  if (!("Suspending" in WebAssembly)) return false; // what its runtime is built on
  return Boolean(await navigator.gpu?.requestAdapter().catch(() => null));
}

function stopWorker() {
  if (worker) worker.onmessage = worker.onerror = null; // of what it had said already
  worker?.terminate();
  worker = null;
}

function startWorker() {
  stopWorker();
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data }) => receive(data);
  worker.onerror = (event) => fail(event.message || "a part of this page can't be loaded");
  worker.postMessage({ load: usesGraphicsCard() ? "webgpu" : "wasm" });
  say("Loading the model …");
}

function usesGraphicsCard() {
  return !find("gpu").hidden && find("gpu").firstElementChild.checked;
}

function receive(data) {
  if (data.failed) return fail(data.failed);
  if (data.loaded) {
    find("model").textContent = `Model ${data.model}, licence ${data.license}, on ${data.loaded}. `;
    find("model").append(link("Licences", "LICENSES.txt"));
    say(started ? "Upscaling …" : "Ready.");
  } else if (data.done) {
    showProgress(data.done, data.of);
  } else if (data.rows) {
    const rows = new ImageData(data.rows, find("after").width);
    find("after").getContext("2d").putImageData(rows, 0, data.top);
    find("pair").classList.remove("waiting");
  } else if (data.finished) {
    finish().catch((error) => fail(error.message));
  }
}

function link(text, href) {
  return Object.assign(document.createElement("a"), { textContent: text, href });
}

function say(text) {
  find("status").textContent = text;
}

/** Say in one sentence what can't be done; null takes it back. */
function showError(sentence) {
  find("error").textContent = sentence ?? "";
  find("error").hidden = !sentence;
}

function setRunning(isRunning) {
  started = isRunning ? performance.now() : 0;
  find("working").hidden = !isRunning;
  find("progress").removeAttribute("value");
  find("left").textContent = "";
  find("cancel").disabled = !isRunning;
  find("start").disabled = isRunning || !photo;
  find("file").disabled = find("gpu").firstElementChild.disabled = isRunning;
  if (isRunning) find("download").hidden = true;
}

function showProgress(done, of) {
  const seconds = ((performance.now() - started) / 1000 / done) * (of - done);
  const isShort = seconds < 90;
  const time = isShort ? `${Math.ceil(seconds)} s` : `${Math.round(seconds / 60)} minutes`;
  find("progress").max = of;
  find("progress").value = done;
  find("left").textContent = `Tile ${done} of ${of}${done < of ? `, about ${time} left` : ""}`;
}

function fail(reason) {
  if (usesGraphicsCard()) {
    // It may lack memory, or something that the model needs.
    find("gpu").firstElementChild.checked = false;
    startWorker();
    if (started) post();
    return;
  }
  setRunning(false);
  stopWorker();
  say("");
  showError(
    /memory|alloc|out of bounds|RangeError|^\d+$/i.test(reason)
      ? `There was not enough memory (${reason}): close other pages, or take a smaller photo.`
      : `It can't be done here: ${reason}.`,
  );
}

/** Take a file as the photo, and show it. */
async function choose(file) {
  if (!file || started) return;
  showError(null);
  find("download").hidden = true;
  photo?.bitmap.close();
  photo = null;
  find("pair").hidden = find("start").disabled = true;
  find("about").textContent = "";
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    return showError(
      `${file.name} is no picture that this browser can read: take a JPEG, PNG or WebP.`,
    );
  }
  const [width, height] = [SCALE * bitmap.width, SCALE * bitmap.height];
  const after = find("after");
  if (!makeRoom(after, width, height)) {
    const most = MOST_SIDE / SCALE;
    return showError(
      `${file.name} has ${bitmap.width} × ${bitmap.height} pixels, and this browser can't hold a ` +
        `result of ${width} × ${height}: take a smaller photo, of ${most} pixels a side at most.`,
    );
  }
  photo = { file, bitmap };
  draw(after.getContext("2d"), bitmap);
  Object.assign(find("before"), { width: bitmap.width, height: bitmap.height });
  draw(find("before").getContext("2d"), bitmap);
  find("pair").style.setProperty("--ratio", width / height);
  find("pair").style.setProperty("--width", `${width / devicePixelRatio}px`);
  find("pair").classList.add("waiting");
  find("pair").hidden = find("start").disabled = false;
  find("name").textContent = file.name;
  const size = `${bitmap.width} × ${bitmap.height}`;
  find("about").textContent = `${file.name}: ${size} pixels become ${width} × ${height}.`;
}

/** Give a canvas a size, and tell whether the browser has one so large. */
function makeRoom(canvas, width, height) {
  if (Math.max(width, height) > MOST_SIDE) return false;
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillRect(width - 1, height - 1, 1, 1);
  return context.getImageData(width - 1, height - 1, 1, 1).data[3] === 255;
}

/** Draw a picture over a whole canvas, in place of what is there unless `how` says otherwise. */
function draw(context, picture, how = "copy") {
  context.globalCompositeOperation = how;
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, context.canvas.width, context.canvas.height);
}

function makeContext(width, height) {
  return new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
}

/** Read the colours of a photo, as RGBA; what is hidden takes that of visible pixels nearby. */
function readPixels(bitmap) {
  const { width, height } = bitmap;
  const context = makeContext(width, height);
  draw(context, bitmap);
  for (const reduction of [8, 32, Infinity]) {
    const sides = [width, height].map((side) => Math.max(1, Math.ceil(side / reduction)));
    const blurred = makeContext(...sides);
    draw(blurred, bitmap);
    draw(context, blurred.canvas, "destination-over"); // which changes nothing that is opaque
  }
  return context.getImageData(0, 0, width, height).data;
}

function start() {
  showError(null);
  setRunning(true);
  say("Upscaling …");
  if (!worker) startWorker();
  try {
    post();
  } catch (error) {
    fail(error.message);
  }
}

function post() {
  const { width, height } = photo.bitmap;
  const pixels = readPixels(photo.bitmap);
  worker.postMessage({ photo: { pixels, width, height } }, [pixels.buffer]);
}

/** Give the result its photo's transparency, and a link to save it. */
async function finish() {
  const context = find("after").getContext("2d");
  draw(context, photo.bitmap, "destination-in");
  const blob = await new Promise((resolve) => find("after").toBlob(resolve, "image/png"));
  if (!blob) throw new Error("this browser has no memory for its PNG");
  const download = find("download");
  URL.revokeObjectURL(download.href);
  download.href = URL.createObjectURL(blob);
  download.download = `${photo.file.name.replace(/\.[^.]*$/, "")}_x4.png`;
  download.textContent = `Download ${download.download}`;
  download.hidden = false;
  const seconds = Math.round((performance.now() - started) / 1000);
  setRunning(false);
  const { width, height } = context.canvas;
  say(`Done in ${seconds} s: ${width} × ${height} pixels, ${(blob.size / 1e6).toFixed(1)} MB.`);
}

function cancel() {
  setRunning(false);
  startWorker(); // ends the one that is at work
  draw(find("after").getContext("2d"), photo.bitmap);
  find("pair").classList.add("waiting");
}

function listen() {
  find("file").addEventListener("change", (event) => choose(event.target.files[0]));
  find("start").addEventListener("click", start);
  find("cancel").addEventListener("click", cancel);
  find("gpu").addEventListener("change", startWorker);
  find("actual").addEventListener("click", () => {
    const isActual = find("pair").classList.toggle("actual");
    find("actual").setAttribute("aria-pressed", isActual);
  });
  document.addEventListener("paste", (event) => choose(event.clipboardData.files[0]));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      document.querySelector(".drop").classList.toggle("over", kind === "dragover");
      if (kind === "drop") choose(event.dataTransfer.files[0]);
    });
  }
}

find("stuck").hidden = true;
find("app").hidden = false;
listen();
if (typeof WebAssembly === "undefined") {
  showError("This browser has no WebAssembly, or it is switched off: the model needs it.");
} else {
  await useServiceWorker();
  find("gpu").hidden = !(await hasGraphicsCard());
  startWorker();
}
