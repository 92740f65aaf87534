"use strict";

function makeSlider(stage) {
  const slider = stage.querySelector("input");
  const show = () => {
    stage.style.setProperty("--split", `${slider.value}%`);
    slider.setAttribute("aria-valuetext", `${slider.value}% ${slider.dataset.left}`);
  };
  const follow = (event) => {
    const box = stage.getBoundingClientRect();
    slider.value = (100 * (event.clientX - box.left)) / box.width;
    show();
  };
  slider.addEventListener("input", show);
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    slider.focus({ preventScroll: true });
    stage.setPointerCapture(event.pointerId);
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) follow(event);
  });
  show();
}

function makeEnlarge(button) {
  button.addEventListener("click", () => {
    const large = button.closest("figure").classList.toggle("large");
    button.setAttribute("aria-pressed", large);
  });
}

function makeViewButtons(buttons) {
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", other === button);
      const radios = document.querySelectorAll(`.pair input[value="${button.dataset.view}"]`);
      for (const radio of radios) radio.checked = true;
    });
  }
}

// A missing value stays at the end whichever way the column is sorted.
function compareCells(first, second, sign) {
  const [a, b] = [first.dataset.value, second.dataset.value];
  if (a === "" || b === "") return (a === "") - (b === "");
  const isNumber = first.classList.contains("number");
  return sign * (isNumber ? Number(a) - Number(b) || 0 : a.localeCompare(b, undefined, { numeric: true }));
}

function makeSortable(table) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => compareCells(a.cells[column], b.cells[column], sign));
      table.tBodies[0].append(...rows);
    });
  });
}

// Thumbnails share the pictures of the gallery, so that each is in the file once.
function addThumbnail(link) {
  const picture = document.querySelector(`${link.getAttribute("href")} .stage img.base`);
  if (!picture) return;
  const thumbnail = new Image();
  thumbnail.src = picture.src;
  thumbnail.alt = "";
  link.prepend(thumbnail);
}

document.querySelectorAll(".stage").forEach(makeSlider);
document.querySelectorAll(".enlarge").forEach(makeEnlarge);
document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll("a.thumbnail").forEach(addThumbnail);
makeViewButtons(document.querySelectorAll("[data-view]"));
