"""HTML as text, in which data can never become markup.

Every child and every attribute of an element is escaped, but for what an element has made itself.
"""

from __future__ import annotations

from html import escape

from lrdyn.system.printer import make_printable


class Markup(str):
    """Text that is HTML already; only :func:`element` and what calls it makes one of data."""

    __slots__ = ()


EMPTY = frozenset({"img", "meta", "br", "wbr", "col"})
"""Elements without an end."""


def text(value: object) -> Markup:
    r"""A value as text of a page: escaped, and what no page may hold made visible.

    Example:
        >>> text("<script>\x00")
        '&lt;script&gt;\\x00'
    """
    if isinstance(value, Markup):
        return value
    return Markup(escape(make_printable(str(value).expandtabs(), lines=True)))


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element of a page.

    Args:
        name: of the element.
        children: what stands in it; text is escaped.
        **attributes: a final underscore is dropped, others become hyphens; None leaves one out,
            True writes its name alone.

    Example:
        >>> element("td", "a < b", class_="number", colspan=2, hidden=None)
        '<td class="number" colspan="2">a &lt; b</td>'
    """
    words = [name]
    for key, value in attributes.items():
        shown = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(shown)
        elif value is not None:
            words.append(f'{shown}="{text(value)}"')
    # Names of elements and attributes are ours; only values and children come from data.
    head = f"<{' '.join(words)}>"
    return Markup(head if name in EMPTY else f"{head}{''.join(map(text, children))}</{name}>")


def joined(*parts: object, by: str = "") -> Markup:
    """Concatenate parts, with a text between them.

    Example:
        >>> joined("a<", element("b", "c"), by=" ")
        'a&lt; <b>c</b>'
    """
    return Markup(by.join(map(text, parts)))
