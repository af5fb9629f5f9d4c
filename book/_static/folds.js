// A link to a folded cell, or into a fold, opens it; a fold says by its own words what it holds.
function unfold() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  const folds = [...target.querySelectorAll(":scope > details.hide")];
  for (let around = target; around; around = around.parentElement)
    if (around.matches("details")) folds.push(around);
  for (const fold of folds) fold.open = true;
  if (folds.length) target.scrollIntoView();
}

document.addEventListener("DOMContentLoaded", () => {
  for (const summary of document.querySelectorAll("details.hide > summary")) summary.removeAttribute("aria-label");
  unfold();
});
addEventListener("hashchange", unfold);
addEventListener("click", (event) => { if (event.target.closest('a[href*="#"]')) setTimeout(unfold); });
