// What a search quotes of a page is text: formulas are shown without the marks of TeX.
document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined" || !Search.htmlToText) return;
  const quoted = Search.htmlToText;
  const plain = (tex) =>
    tex
      .replace(/\\[()[\]]/g, "")
      .replace(/\\(?:left|right|big|bigl|bigr|Bigl|Bigr|tfrac|mathrm|operatorname|text|lVert|rVert)\b/g, (word) =>
        word.endsWith("Vert") ? "||" : word === "\\tfrac" ? "" : "",
      )
      .replace(/\\(?:d|t)?frac\{([^{}]*)\}\{([^{}]*)\}/g, "($1)/($2)")
      .replace(/\\hat\{?(\w)\}?/g, "$1^")
      .replace(/\\top\b/g, "T")
      .replace(/\\le\b/g, "<=")
      .replace(/\\ge\b/g, ">=")
      .replace(/\\([a-zA-Z]+)/g, "$1")
      .replace(/\\[,;!: ]/g, " ")
      .replace(/[{}$]/g, "");
  Search.htmlToText = (html, anchor) => {
    const page = new DOMParser().parseFromString(html, "text/html");
    page.querySelectorAll(".math").forEach((formula) => {
      formula.textContent = plain(formula.textContent);
    });
    return quoted(page.documentElement.outerHTML, anchor);
  };
});
