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
  // What scrolls sideways has to be within reach of the keyboard.
  for (const table of document.querySelectorAll(".bd-content table")) {
    table.tabIndex = 0;
  }
  // The theme's arrows that unfold a part of the contents have no name of their own.
  for (const arrow of document.querySelectorAll(".bd-sidebar summary")) {
    arrow.setAttribute("aria-label", "pages below");
  }
});
