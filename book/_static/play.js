// The page to play with: shows the cell that sliders and buttons ask for. Without this script it
// shows the first one, and all of them as a table.
document.addEventListener("DOMContentLoaded", () => {
  for (const player of document.querySelectorAll(".gleak-play")) {
    const cells = [...player.querySelectorAll(".cell")];
    const sliders = [...player.querySelectorAll("input[type=range]")];
    const said = player.querySelector(".said");
    const show = () => {
      const wanted = { defence: player.querySelector("input[type=radio]:checked").value };
      for (const slider of sliders) {
        wanted[slider.name] = slider.dataset.values.split(" ")[slider.value];
        slider.nextElementSibling.textContent = wanted[slider.name];
        slider.setAttribute("aria-valuetext", wanted[slider.name]);
      }
      for (const cell of cells) {
        cell.hidden = !Object.entries(wanted).every(([name, value]) => cell.dataset[name] === value);
        if (!cell.hidden) said.textContent = cell.querySelector(".verdict").lastChild.textContent;
      }
    };
    player.addEventListener("input", show);
    player.querySelector(".choices").hidden = false;
    said.hidden = false;
    show();
  }
});
