// The labels of the equations that the filter of the index shows for a query, and what it says of them.
"use strict";

async function ask(view, job) {
  const input = view.document.getElementById("equation-filter");
  input.value = job.query;
  input.dispatchEvent(new view.Event("input", {bubbles: true}));
  await new Promise((done) => setTimeout(done, 50));
  const seen = [...view.document.querySelectorAll(".equation-entry")].filter((e) => e.offsetParent !== null);
  return [view.document.querySelector(".equation-filter output").textContent,
          ...seen.map((entry) => entry.textContent.match(/eq-[\w-]+/)[0])];
}
