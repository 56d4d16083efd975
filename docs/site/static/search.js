// What a search quotes of a page is text: formulas are shown without the marks of TeX.
document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined" || !Search.htmlToText) return;
  const quoted = Search.htmlToText;
  const SPOKEN = {
    lVert: "||", rVert: "||", Vert: "||", cdots: "...", dots: "...", ldots: "...", langle: "<", rangle: ">",
    top: "T", le: "<=", ge: ">=", ne: "!=", approx: "~", cdot: "*", ast: "*", to: "->", in: "in",
    left: "", right: "", big: "", bigl: "", bigr: "", Bigl: "", Bigr: "", quad: " ", qquad: " ",
    mathrm: "", operatorname: "", text: "", mathbb: "", hat: "",
  };
  const plain = (tex) =>
    tex
      .replace(/\\[()[\]]/g, "")
      .replace(/\\[dt]?frac\s*(\d)\s*(\d)/g, "$1/$2")
      .replace(/\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}/g, "($1)/($2)")
      .replace(/\\sqrt\{([^{}]*)\}/g, "sqrt($1)")
      .replace(/([_^])\{([^{}]{2,})\}/g, "$1($2)")
      .replace(/\\([a-zA-Z]+)/g, (_, word) => (word in SPOKEN ? SPOKEN[word] : word))
      .replace(/\\[,;!: ]/g, " ")
      .replace(/[{}$\\]/g, "");
  Search.htmlToText = (html, anchor) => {
    const page = new DOMParser().parseFromString(html, "text/html");
    page.querySelectorAll(".math").forEach((formula) => {
      formula.textContent = plain(formula.textContent);
    });
    return quoted(page.documentElement.outerHTML, anchor);
  };
});
