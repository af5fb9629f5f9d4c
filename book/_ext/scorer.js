// How the search ranks: a chapter stands before the pages that only list what chapters say.
var Scorer = {
  score: ([page, , , , score]) =>
    /^(api\/|glossary$|equations$|errata$|notation$|references$|environment$)/.test(page) ? 0.8 * score : score,
  objNameMatch: 11, objPartialMatch: 6, objPrio: {0: 15, 1: 5, 2: -5}, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};
