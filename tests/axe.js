// What axe-core finds on a page in one of the two themes, as a list of texts "rule (impact): places".
"use strict";

async function ask(view, job) {
  const page = view.document;
  if (view.MathJax && view.MathJax.startup) await view.MathJax.startup.promise;
  page.documentElement.dataset.theme = job.theme;
  page.documentElement.dataset.mode = job.theme;
  // the glyphs of formulas are drawings, thousands a page, and hidden from screen readers; their words stay
  for (const glyphs of page.querySelectorAll("mjx-math")) glyphs.remove();
  // the entries of the index of equations are alike: two of each chapter
  for (const entry of page.querySelectorAll(".equation-entry ~ .equation-entry ~ .equation-entry")) entry.remove();
  const still = page.head.appendChild(page.createElement("style"));
  still.textContent = "* { transition: none !important; animation: none !important; }";
  view.dispatchEvent(new view.Event("resize"));
  await new Promise((done) => setTimeout(done, 100));
  const script = page.createElement("script");
  script.textContent = AXE;
  page.head.append(script);
  const {violations} = await view.axe.run(page);
  return violations.map((v) => `${v.id} (${v.impact}): ${v.nodes.map((n) => n.target.join(" ")).slice(0, 4).join(" | ")}`
    + ` [${v.nodes.length}] ${v.nodes[0].failureSummary}`);
}
