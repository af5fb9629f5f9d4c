// What does not fit on a page at each of the `widths` of a job, as pairs [width, "kind: place"]. Folded
// parts are opened first; the page is loaded once and then made narrower.
"use strict";

const SCROLLERS = "pre, mjx-container[display], .pst-scrollable-table-container, .result-table, .chapter-map > div";
const PARTS = "p, li, dt, dd, table, img, pre, mjx-container, svg, h1, h2, h3, figcaption, input";
const settled = () => new Promise((done) => setTimeout(done, 250));

const place = (element) => {
  const near = element.closest("[id]");
  const words = (element.getAttribute("src") || element.textContent).trim().replace(/\s+/g, " ").slice(0, 60);
  return `#${near ? near.id : "?"} ${element.tagName.toLowerCase()} ${element.scrollWidth}>${element.clientWidth} ${words}`;
};

const openAll = (page) => {
  for (const fold of page.querySelectorAll("details")) fold.open = true;
  for (const fold of page.querySelectorAll(".toggle-hidden")) fold.classList.remove("toggle-hidden");
};

const ready = async (view) => {
  const page = view.document;
  if (view.MathJax && view.MathJax.startup) await view.MathJax.startup.promise;
  openAll(page);
  const images = [...page.querySelectorAll("img")];
  for (const image of images) image.loading = "eager";
  await Promise.all(images.filter((i) => i.src).map((image) => image.decode().catch(() => {})));
};

const resized = async (view, width) => {
  view.frameElement.style.width = `${width}px`;
  view.dispatchEvent(new view.Event("resize"));
  await settled();
};

const cut = (element) => element.clientWidth > 0 && element.scrollWidth > element.clientWidth + 1;

const kind = (element) => {
  if (element.matches("mjx-container")) return "equation";
  if (element.matches(".cell_output *")) return element.matches("pre") ? "output" : "table";
  return element.matches("pre") ? "code" : "table";
};

const squashed = (image) => {
  if (!image.naturalWidth || !image.clientWidth) return false;
  const wanted = image.clientWidth * image.naturalHeight / image.naturalWidth;
  return Math.abs(image.clientHeight - wanted) > 2 + 0.02 * wanted;
};

const bar = (element) => {
  const style = element.ownerDocument.defaultView.getComputedStyle(element);
  const borders = parseFloat(style.borderTopWidth) + parseFloat(style.borderBottomWidth);
  return element.offsetHeight - element.clientHeight - borders >= 4;
};

const unfit = (page) => {
  const found = [];
  const article = page.querySelector("article") || page.body;
  const edge = article.getBoundingClientRect().right;
  for (const element of article.querySelectorAll(SCROLLERS)) {
    if (!cut(element)) continue;
    found.push(`${kind(element)}: ${place(element)}`);
    if (!bar(element)) found.push(`no bar: ${place(element)}`);
    if (element.tabIndex < 0) found.push(`no focus: ${place(element)}`);
  }
  for (const image of article.querySelectorAll("img")) if (squashed(image)) found.push(`squashed: ${place(image)}`);
  for (const element of article.querySelectorAll(PARTS)) {
    const scroller = element.closest(SCROLLERS), own = element.getBoundingClientRect();
    const inline = element.matches("mjx-container");  // its scrollWidth counts the hidden words for screen readers
    const right = scroller || inline ? own.right : Math.max(own.right, own.left + element.scrollWidth);
    if ((!scroller || scroller === element) && own.width > 0 && right > edge + 2) found.push(`outside: ${place(element)}`);
  }
  const root = page.documentElement;
  if (root.scrollWidth > root.clientWidth + 1) found.push(`page: ${root.scrollWidth}>${root.clientWidth}`);
  return found;
};

async function ask(view, job) {
  const found = [];
  await ready(view);
  for (const width of job.widths) {
    await resized(view, width);
    for (const text of unfit(view.document)) found.push([width, text]);
  }
  return found;
}
