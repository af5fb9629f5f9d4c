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

// A formula a little wider than its place is set smaller: one of its own line by three tenths at most, for it can
// scroll; one inside a line by a half.
const fit = () => {
  const formulas = [...document.querySelectorAll("article mjx-container")].filter((f) => !f.closest("table"));
  for (const formula of formulas) formula.style.removeProperty("font-size");
  const shares = formulas.map((formula) => {
    const display = formula.hasAttribute("display"), around = display ? formula : formula.closest("p, li, dd, figcaption");
    if (!around || !around.clientWidth) return 1;
    return around.clientWidth / (display ? formula.scrollWidth : 1 + Math.max(formula.getBoundingClientRect().width, formula.scrollWidth));
  });
  const sizes = formulas.map((formula, i) => shares[i] < 1 ? parseFloat(getComputedStyle(formula).fontSize) : 0);
  formulas.forEach((formula, i) => {
    if (shares[i] >= 1) return;
    const size = sizes[i] * Math.max(0.99 * shares[i], formula.hasAttribute("display") ? 0.7 : 0.5);
    formula.style.setProperty("font-size", `${size}px`, "important");
  });
};

// Many events at once, of folds that open together, are answered once.
let waiting = false;
const settle = () => {
  if (waiting) return;
  waiting = true;
  setTimeout(() => {
    waiting = false;
    fit();
    reachable();
  }, 20);
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
  form.querySelector("output").textContent = words.length ? `${shown} equation${shown === 1 ? "" : "s"}` : "";
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
  settle();
  if (window.MathJax && MathJax.startup && MathJax.startup.promise) MathJax.startup.promise.then(settle);
});
document.addEventListener("toggle", settle, true);
document.addEventListener("click", (event) => { if (event.target.closest(".admonition-title")) settle(); });
window.addEventListener("resize", settle);
window.addEventListener("load", settle);
