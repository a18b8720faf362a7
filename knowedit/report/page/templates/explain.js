"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const root = document.documentElement;

  // light or dark: the reader's own setting until the button is pressed
  const theme = document.querySelector(".theme");
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const name = () => { theme.textContent = dark() ? "Light" : "Dark"; };
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
  name();

  // one map at a time; without a script all of them stand below each other
  for (const group of all("[data-choose]")) {
    const buttons = all("button", group);
    const maps = buttons.map((button) => document.getElementById(button.getAttribute("aria-controls")));
    const show = (chosen) => buttons.forEach((button, i) => {
      button.setAttribute("aria-pressed", String(i === chosen));
      maps[i].hidden = i !== chosen;
    });
    buttons.forEach((button, i) => button.addEventListener("click", () => show(i)));
    group.hidden = false;
    show(0);
  }

  // the value under the pointer, in words
  for (const map of all(".heat-map")) {
    const out = map.querySelector(".readout");
    const idle = out.textContent;
    const tell = (event) => {
      const cell = event.target.closest("rect");
      out.textContent = cell ? cell.dataset.said : idle;
    };
    map.addEventListener("pointerover", tell);
    map.addEventListener("pointerdown", tell);
    map.addEventListener("pointerleave", () => { out.textContent = idle; });
  }

  // the record behind the page, as a file
  const get = document.querySelector(".get");
  get.hidden = false;
  get.addEventListener("click", () => {
    const text = document.getElementById("record").textContent;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = "knowedit-explain.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
})();
