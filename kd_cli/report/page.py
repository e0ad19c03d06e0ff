"""A page of headings, texts, tables and figures, as one HTML file and as Markdown.

The HTML needs nothing beside itself: styles and figures are inside. It reads on a phone (tables
scroll inside themselves), in light and dark, and figures keep a white card behind them. All text is
escaped: names come from files and command lines.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Heading:
    """A heading of level 1 (the title) to 3."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; `small` for what explains."""

    text: str
    small: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list of sentences; the part before the first `: ` stands out where `lead` is true."""

    items: Sequence[str]
    lead: bool = False


@dataclass(frozen=True)
class Row:
    """A table's row, or with `span` a line over all columns; `strong` stands out."""

    cells: Sequence[str] = ()
    span: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table; `texts` are the numbers of the columns that are not numbers."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Row]
    texts: Sequence[int] = (0,)


@dataclass(frozen=True)
class Picture:
    """A figure: its file's name, its PNG, what it shows for those who can't see it, a caption."""

    file: str
    png: bytes = field(repr=False)
    alt: str
    caption: str


Block = Heading | Text | Bullets | Table | Picture
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --soft: #5b6169; --line: #d9dce0;
  --tint: #f3f4f6; --card: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ec; --paper: #15171a; --soft: #a3abb5;
  --line: #353a41; --tint: #20242a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 78rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.3rem; margin-top: 2.2rem;
  border-bottom: 1px solid var(--line); padding-bottom: .2rem; } h3 { font-size: 1.05rem; }
p, li { max-width: 72ch; } .small { color: var(--soft); font-size: .9rem; }
li { margin: .35rem 0; }
.table { overflow: auto; max-height: 80vh; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; width: 100%; }
caption { caption-side: bottom; text-align: left; color: var(--soft); padding: .4rem .6rem; }
th, td { padding: .35rem .45rem; text-align: right; vertical-align: top; }
td { border-top: 1px solid var(--line); }
th { position: sticky; top: 0; background: var(--tint); vertical-align: bottom; }
.text { text-align: left; }
td.text { min-width: 10.5rem; overflow-wrap: anywhere; } td.last { min-width: 16rem; }
tr:not(.span) > :first-child { position: sticky; left: 0; background: var(--paper); }
thead tr:not(.span) > :first-child { background: var(--tint); z-index: 1; }
.span td { text-align: left; background: var(--tint); font-weight: 600; }
.span span { position: sticky; left: .6rem; display: inline-block; max-width: min(86vw, 70rem); }
.strong td:not(.last) { font-weight: 700; }
.table, .figures { margin: 1rem 0; }
.figures { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
figure { margin: 0; }
figure img { display: block; width: 100%; max-width: 36rem; height: auto; background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; padding: .4rem; }
figcaption { color: var(--soft); font-size: .88rem; margin-top: .3rem; max-width: 36rem; }
@media (max-width: 40rem) { h1 { font-size: 1.35rem; } ul { padding-left: 1.2rem; }
  table { font-size: .8rem; } th, td { padding: .3rem .4rem; }
  td.text { min-width: 8rem; } td.last { min-width: 15rem; } figure img { padding: .1rem; } }
"""


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """The whole page."""
    parts: list[str] = []
    figures: list[str] = []
    for block in [*blocks, None]:
        if isinstance(block, Picture):
            figures.append(_figure(block))
            continue
        if figures:
            parts.append(f'<div class="figures">{"".join(figures)}</div>')
            figures = []
        if block is not None:
            parts.append(_element(block))
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _element(block: Heading | Text | Bullets | Table) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        kind = ' class="small"' if block.small else ""
        return f"<p{kind}>{html.escape(block.text)}</p>"
    if isinstance(block, Bullets):
        items = "".join(f"<li>{_lead(item, block.lead)}</li>" for item in block.items)
        return f"<ul>{items}</ul>"
    return _table(block)


def _lead(item: str, lead: bool) -> str:
    head, colon, rest = item.partition(": ")
    if not (lead and colon):
        return html.escape(item)
    return f"<strong>{html.escape(head)}:</strong> {html.escape(rest)}"


def _table(table: Table) -> str:
    last = len(table.columns) - 1

    def kind(column: int) -> str:
        if column not in table.texts:
            return ""
        return ' class="text last"' if column == last else ' class="text"'

    head = "".join(
        f'<th scope="col"{kind(n)}>{html.escape(name)}</th>' for n, name in enumerate(table.columns)
    )
    rows = []
    for row in table.rows:
        if row.span:
            cell = f'<td colspan="{len(table.columns)}"><span>{html.escape(row.span)}</span></td>'
            rows.append(f'<tr class="span">{cell}</tr>')
            continue
        # A narrow column breaks before the sign, not after it.
        texts = [html.escape(cell).replace("± ", "±&nbsp;") for cell in row.cells]
        cells = "".join(f"<td{kind(n)}>{text}</td>" for n, text in enumerate(texts))
        rows.append(f'<tr class="strong">{cells}</tr>' if row.strong else f"<tr>{cells}</tr>")
    # A box that scrolls must be within reach of the keyboard: it has a name and takes the focus.
    label = html.escape(table.caption)
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{label}"><table>'
        f"<caption>{label}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    return (
        f'<figure><img alt="{html.escape(picture.alt)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
    )


def to_markdown(blocks: Sequence[Block]) -> str:
    """The same in Markdown, with the figures as files beside it."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_escaped(block.text)}"
    if isinstance(block, Text):
        return _escaped(block.text)
    if isinstance(block, Bullets):
        return "\n".join(f"- {_escaped(item)}" for item in block.items)
    if isinstance(block, Picture):
        return f"![{_escaped(block.alt)}]({block.file})\n\n{_escaped(block.caption)}"
    rule = [":--" if n in block.texts else "--:" for n in range(len(block.columns))]
    lines = [block.columns, None, *block.rows]
    text = []
    for line in lines:
        if line is None:
            cells = rule
        elif isinstance(line, Row) and line.span:
            cells = [f"**{_escaped(line.span)}**", *[""] * (len(block.columns) - 1)]
        else:
            cells = [_escaped(cell) for cell in (line.cells if isinstance(line, Row) else line)]
            if isinstance(line, Row) and line.strong:
                cells[0] = f"**{cells[0]}**"
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text) + f"\n\n{_escaped(block.caption)}"


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = re.sub(r"([\\`*\[\]|#~]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
