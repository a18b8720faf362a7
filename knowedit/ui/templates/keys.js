"use strict";
// a group of radio buttons is one stop of the Tab key, and arrows choose in it, as everywhere else: gradio's have no
// name in common, by which a browser would do this
{
  const group = (one) => one?.matches?.("input[type=radio]")
    ? [...one.closest("fieldset, .block").querySelectorAll("input[type=radio]")] : [];
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  document.addEventListener("keydown", (event) => {
    const all = group(event.target);
    if (!all.length) return;
    if (event.key === "Tab") {
      all.forEach((other) => { other.tabIndex = other === event.target ? 0 : -1; });
    } else if (steps[event.key]) {
      event.preventDefault();
      const next = all[(all.indexOf(event.target) + steps[event.key] + all.length) % all.length];
      next.focus();
      next.click();
    }
  });
  document.addEventListener("focusin", (event) => {
    const all = group(event.target);
    const chosen = all.find((one) => one.checked);
    all.forEach((other) => { other.tabIndex = 0; });
    if (chosen && !all.includes(event.relatedTarget) && event.target.matches(":focus-visible")) chosen.focus();
  });
}
