"""The picture of a guest's pages, with addresses and a legend, as PNG or SVG."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.errors import UsageError
from virtintrospect.insight.pagemap import WIDTH, picture, totals
from virtintrospect.model.pages import PAGE_KINDS

if TYPE_CHECKING:
    from virtintrospect.model.pages import PageOwners

#: A colour for each of :data:`~virtintrospect.model.pages.PAGE_KINDS`.
COLOURS = (
    (255, 255, 255), (222, 226, 230), (190, 198, 206), (51, 102, 204), (86, 180, 233),
    (0, 158, 115), (0, 92, 70), (230, 159, 0), (213, 94, 0), (204, 121, 167),
    (148, 103, 189), (196, 156, 255), (60, 60, 60), (120, 120, 120), (160, 150, 130),
    (250, 240, 140), (255, 0, 0), (140, 86, 75),
)  # fmt: skip
#: Where the pixels begin, and where the legend does, behind them.
_LEFT, _TOP, _GAP, _LEGEND = 96, 24, 16, 260
#: Height of a line of text, and lines of pixels from one address to the next at least.
_LINE = 16


class _Text(NamedTuple):
    """A word of the picture; with a colour, a square of it stands before."""

    x: int
    y: int
    text: str
    colour: tuple[int, int, int] | None = None


def draw(owners: PageOwners, title: str, kind: str) -> bytes:
    """A file with the picture.

    :param title: what stands above it.
    :param kind: ``png`` or ``svg``.
    :raises UsageError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError(
            "pictures need Pillow",
            hint="pip install 'virtintrospect[plot]', or Debian's python3-pil",
        ) from error
    pixels, firsts, each = picture(owners)
    image = Image.fromarray(pixels)
    image.putpalette([value for colour in COLOURS for value in colour])
    texts = _texts(owners, title, firsts, each)
    width = _LEFT + WIDTH + _GAP + _LEGEND
    height = max(_TOP + len(pixels), max(text.y for text in texts) + _LINE) + _TOP
    return (_svg if kind == "svg" else _png)(image, texts, width, height)


def _texts(owners: PageOwners, title: str, firsts: list[int], each: int) -> list[_Text]:
    import numpy as np

    texts = [_Text(_LEFT, 4, f"{title}: one pixel is {each * owners.page_size >> 10} KiB")]
    last, before = -_LINE, -1
    step = each * WIDTH
    for line, first in enumerate(firsts):
        gap = first != before + step
        if line - last >= 4 * _LINE or (gap and line - last >= _LINE):
            texts.append(_Text(4, _TOP + line, f"{first * owners.page_size:#x}"))
            last = line
        before = first
    y = _TOP
    for row in totals(owners, np.zeros(len(owners.kind), dtype=bool)):
        name, size = row["owner"].replace("_", " "), row["size"] / (1 << 20)
        colour = COLOURS[PAGE_KINDS.index(row["owner"])]
        texts.append(_Text(_LEFT + WIDTH + _GAP, y, f"{name}  {size:.1f} MiB", colour))
        y += _LINE + 4
    return texts


def _png(image: Any, texts: list[_Text], width: int, height: int) -> bytes:
    from PIL import Image, ImageDraw

    page = Image.new("RGB", (width, height), "white")
    page.paste(image.convert("RGB"), (_LEFT, _TOP))
    pen = ImageDraw.Draw(page)
    for x, y, text, colour in texts:
        if colour:
            pen.rectangle((x, y, x + 12, y + 12), fill=colour, outline=(90, 90, 90))
        pen.text((x + (18 if colour else 0), y), text, fill="black")
    out = io.BytesIO()
    page.save(out, "PNG", optimize=True)
    return out.getvalue()


def _svg(image: Any, texts: list[_Text], width: int, height: int) -> bytes:
    """The pixels as an embedded PNG, the words as text."""
    from xml.sax.saxutils import escape

    inner = io.BytesIO()
    image.save(inner, "PNG", optimize=True)
    data = base64.b64encode(inner.getvalue()).decode()
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
    place = f'x="{_LEFT}" y="{_TOP}" width="{image.width}" height="{image.height}"'
    look = 'style="image-rendering:pixelated"'
    parts = [
        f'{head} font-family="monospace" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<image {place} {look} href="data:image/png;base64,{data}"/>',
    ]
    for x, y, text, colour in texts:
        if colour:
            parts.append(
                f'<rect x="{x}" y="{y}" width="12" height="12" stroke="gray" fill="rgb{colour}"/>'
            )
        parts.append(f'<text x="{x + (18 if colour else 0)}" y="{y + 10}">{escape(text)}</text>')
    return ("\n".join(parts) + "\n</svg>\n").encode()
