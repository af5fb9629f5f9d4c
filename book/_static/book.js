// What the pages of the book do by themselves, without a network: everything that scrolls can be reached by
// the keyboard, and the index of equations has a filter.
"use strict";

// Whatever is wider than its place scrolls; it takes the focus, so that arrow keys move it.
const SCROLLING = "pre, mjx-container[display], .pst-scrollable-table-container, .result-table, .chapter-map > div";

const reachable = () => {
  for (const element of document.querySelectorAll(SCROLLING)) {
    const scrolls = element.scrollWidth > element.clientWidth + 1 && element.clientWidth > 0;
    if (scrolls) element.tabIndex = 0;
    else if (!element.matches(".result-table")) element.removeAttribute("tabindex");
  }
};

// Every word typed must stand in an entry, or in the heading of its chapter.
const filterEquations = (form) => {
  const words = form.elements["equation-filter"].value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const chapter of document.querySelectorAll(".equation-chapter")) {
    const heading = chapter.querySelector("h2").textContent;
    const entries = [...chapter.querySelectorAll(".equation-entry")];
    for (const entry of entries) {
      const text = `${heading} ${entry.textContent}`.toLowerCase();
      entry.hidden = !words.every((word) => text.includes(word));
    }
    const left = entries.filter((entry) => !entry.hidden).length;
    chapter.hidden = left === 0;
    shown += left;
  }
  form.querySelector("output").textContent = words.length ? `${shown} equations` : "";
};

const startFilter = () => {
  const form = document.querySelector(".equation-filter");
  if (!form) return;
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => filterEquations(form));
};

// The theme leaves two things without a name: the place of the logo, and the buttons that open a part of the
// contents, which are named after the part.
const nameParts = () => {
  const logo = document.querySelector(".sidebar-primary-item:has(.navbar-brand)");
  if (logo) {
    logo.setAttribute("role", "navigation");
    logo.setAttribute("aria-label", "Home");
  }
  for (const summary of document.querySelectorAll("nav summary:not([aria-label])")) {
    const item = summary.closest("li");
    summary.setAttribute("aria-label", `Pages of ${item ? item.querySelector("a").textContent.trim() : "this part"}`);
  }
};

document.addEventListener("DOMContentLoaded", () => {
  nameParts();
  startFilter();
  reachable();
  if (window.MathJax && MathJax.startup && MathJax.startup.promise) MathJax.startup.promise.then(reachable);
});
document.addEventListener("toggle", reachable, true);
window.addEventListener("resize", reachable);
window.addEventListener("load", reachable);
