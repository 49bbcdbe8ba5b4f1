// Figures that move: a slider over pictures, and a wipe between two. Without this script they show
// the last picture, and one half of each.
document.addEventListener("DOMContentLoaded", () => {
  for (const figure of document.querySelectorAll(".gleak-slider")) {
    const frames = [...figure.querySelectorAll("[data-frame]")];
    const input = figure.querySelector("input");
    const output = figure.querySelector("output");
    const show = () => {
      frames.forEach((frame, index) => { frame.hidden = index !== Number(input.value); });
      output.textContent = frames[input.value].dataset.frame;
      input.setAttribute("aria-valuetext", output.textContent);
    };
    input.addEventListener("input", show);
    show();
    figure.querySelector(".control").hidden = false;
  }
  for (const figure of document.querySelectorAll(".gleak-compare")) {
    const input = figure.querySelector("input");
    const wipe = () => {
      figure.style.setProperty("--cut", `${input.value}%`);
      input.setAttribute("aria-valuetext", `${input.value} % original`);
    };
    input.addEventListener("input", wipe);
    wipe();
    figure.querySelector(".control").hidden = false;
  }
  // What scrolls sideways says so, and is within reach of the keyboard.
  for (const table of document.querySelectorAll(".bd-content article table")) {
    if (table.closest(".gleak-scroll, .pst-scrollable-table-container")) continue;
    const box = document.createElement("div");
    box.className = "gleak-scroll";
    table.replaceWith(box);
    box.append(table);
  }
  for (const box of document.querySelectorAll(".gleak-scroll")) {
    box.classList.toggle("long", box.querySelector("table").rows.length > 40);
  }
  for (const row of document.querySelectorAll(".bd-content article tr")) {
    const before = row.previousElementSibling?.firstColumn ?? 0;  // rows that a cell above still spans
    if (!before) row.cells[0]?.classList.add("stays");
    if (!before && row.cells[0]?.textContent.length > 12) row.cells[0].classList.add("words");
    row.firstColumn = (before || row.cells[0]?.rowSpan || 1) - 1;
  }
  const boxes = ".gleak-scroll, .gleak-figure, .pst-scrollable-table-container, .highlight > pre";
  const little = 16;  // pixels; so little hidden is a margin, and no sign is due
  for (const box of document.querySelectorAll(boxes)) {
    const sign = document.createElement("span");
    sign.className = "gleak-more";
    sign.setAttribute("aria-hidden", "true");
    if (box.matches("pre")) {  // most code has some: an arrow in its corner, no words
      sign.textContent = "\u2192";
      box.after(sign);
    } else {
      sign.textContent = "there is more \u2192";
      box.before(sign);
    }
    const look = () => {
      const hidden = box.scrollWidth - box.clientWidth;
      sign.hidden = hidden - box.scrollLeft < little;
      box.classList.toggle("more", !sign.hidden);
      if (hidden > 0) box.tabIndex = 0; else box.removeAttribute("tabindex");
    };
    box.addEventListener("scroll", look);
    new ResizeObserver(look).observe(box);
  }
  // The theme's arrows that unfold a part of the contents have no name of their own.
  for (const arrow of document.querySelectorAll(".bd-sidebar summary")) {
    arrow.setAttribute("aria-label", "pages below");
  }
});
