"""Reports in a browser: what axe-core finds, and what is wider than the page.

``python -m tests.faults.report_pages [PAGE.html ...] [--axe FILE] [--shots DIR]`` looks at each
page at 1280 and 390 pixels, light and dark; without pages at a small run, a diagnosis and results
whose every text is markup. Chromium and ``axe.min.js`` (``npm install axe-core``) must be at hand:
without them it says so, and nothing is looked at.
"""

import argparse
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lrdyn.core.show import aligned

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (1280, 390)
SCHEMES = {"light": 1, "dark": 0}
"""Scheme of colours -> Blink's number of it."""
PROBE = """
<script>%s</script>
<script>
const wide = [...document.querySelectorAll("body *")].filter(
  e => !e.closest(".scroll") && e.getBoundingClientRect().right > window.innerWidth + 1);
axe.run(document, {resultTypes: ["violations", "passes"]}).then(found => {
  parent.postMessage(JSON.stringify({
    width: window.innerWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    passes: found.passes.length,
    violations: found.violations.map(v => [v.id, v.nodes.length, v.nodes[0].html.slice(0, 160)]),
    wide: wide.slice(0, 3).map(e => e.outerHTML.slice(0, 160)),
    scrolled: [...document.querySelectorAll(".scroll")].filter(
      e => e.scrollWidth > e.clientWidth + 1).length,
  }), "*");
});
</script>
"""
"""What is added to a copy of a page."""
FRAME = """<!doctype html><pre id="found"></pre><script>
addEventListener("message", m => { document.getElementById("found").textContent = m.data; });
</script><iframe src="%s" style="width: %dpx; height: 2600px; border: 0"></iframe>"""
"""The page around it: no window of Chromium is narrower than 500 pixels, and a frame is."""


class Seen(NamedTuple):
    """A page at one width in one scheme."""

    page: Path
    width: int
    scheme: str
    found: dict[str, Any]

    @property
    def is_fine(self) -> bool:
        """Whether nothing is wrong."""
        return not self.found["violations"] and not self.found["wide"]


def probed(page: Path, axe: Path, folder: Path) -> Path:
    """A copy of a page that looks at itself; its policy lets no script run and is taken out."""
    text = page.read_text()
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', text)
    assert policy, page
    script = PROBE.replace("%s", axe.read_text())
    copy = folder / page.name
    copy.write_text(text.replace(policy[0], "").replace("</body>", f"{script}</body>"))
    return copy


def browse(browser: str, page: Path, width: int, scheme: str, *words: str) -> str:
    """Open a page in a browser without a window; what it prints."""
    fixed = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
    look = f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}"
    command = [browser, *fixed, look, f"--window-size={width},2600", *words, page.as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return ended.stdout


def looked_at(page: Path, browser: str, axe: Path, shots: Path | None) -> Iterator[Seen]:
    """A page at every width in every scheme."""
    with tempfile.TemporaryDirectory() as made:
        copy = probed(page, axe, Path(made))
        for width in WIDTHS:
            for scheme in SCHEMES:
                frame = Path(made) / f"frame-{width}.html"
                frame.write_text(FRAME % (copy.name, width))
                dom = browse(
                    browser, frame, 1400, scheme, "--virtual-time-budget=30000", "--dump-dom"
                )
                found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)
                assert found, f"{page}: no result at {width} pixels"
                seen = json.loads(html.unescape(found[1]))
                assert seen["width"] == width, seen
                assert seen["dark"] is (scheme == "dark"), seen
                yield Seen(page, width, scheme, seen)
                if shots is not None:
                    shot = shots / f"{page.stem}-{scheme}-{width}.png"
                    browse(browser, page, width, scheme, f"--screenshot={shot}")


def samples(folder: Path) -> list[Path]:
    """Pages of a small run, of a diagnosis and of results whose every text is markup."""
    from tests import reports  # which loads JAX

    return reports.pages(folder)


def main(argv: list[str]) -> int:
    """Look at pages; 1 if anything is wrong with one."""
    parser = argparse.ArgumentParser("report_pages")
    parser.add_argument("pages", nargs="*", type=lambda text: Path(text).resolve())
    parser.add_argument("--axe", type=Path, default=Path("node_modules/axe-core/axe.min.js"))
    parser.add_argument("--shots", type=lambda text: Path(text).resolve())
    options = parser.parse_args(argv)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None or not options.axe.is_file():
        print(f"not looked at: wanted chromium and {options.axe} (npm install axe-core)")
        return 0
    with tempfile.TemporaryDirectory() as made:
        pages = options.pages or samples(Path(made))
        every = [
            one for page in pages for one in looked_at(page, browser, options.axe, options.shots)
        ]
    rows: list[tuple[str, ...]] = [
        ("page", "pixels", "scheme", "rules passed", "violations", "too wide", "scrolled")
    ]
    for page, width, scheme, found in every:
        counts = (len(found[name]) for name in ("violations", "wide"))
        row = (page.name, str(width), scheme, str(found["passes"]), *map(str, counts))
        rows.append((*row, str(found["scrolled"])))
    print("\n".join(aligned(rows)))
    for one in every:
        for name in ("violations", "wide"):
            for entry in one.found[name]:
                print(f"{one.page.name} at {one.width}, {one.scheme}: {name}: {entry}")
    return int(not all(one.is_fine for one in every))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
