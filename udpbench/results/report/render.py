"""A document as Markdown, LaTeX or one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import html
import re

from udpbench.results.report.document import Document, Figure, Section, Table

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2rem auto;padding:0 1rem;color:#222}
h1,h2,h3,h4{line-height:1.2}h2{margin-top:2.2em;border-bottom:1px solid #ccc}
table{border-collapse:collapse;font-size:13px;margin:1em 0}.wide{overflow-x:auto}caption{text-align:left;color:#555}
th,td{padding:.25em .7em;border-bottom:1px solid #e3e3e3;text-align:right;vertical-align:top;
font-variant-numeric:tabular-nums}th{border-bottom:2px solid #999}.l{text-align:left}
figure{margin:1em 0}figcaption{color:#555;font-size:13px}img{max-width:100%}
@media(prefers-color-scheme:dark){body{background:#16181c;color:#ddd}th,td{border-color:#333}img{background:#fff}caption,figcaption{color:#aaa}}"""
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$", "†": r"\textdagger{}",
}  # fmt: skip


def markdown(document: Document) -> str:
    """GitHub Markdown; figures are links into figures/."""
    lines = [f"# {_one_line(document.title)}", ""]
    for section in document.sections:
        lines += [f"{'#' * section.level} {_one_line(section.title)}", ""]
        for text in section.text:
            lines += [_one_line(text), ""]
        for block in section.blocks:
            lines += [
                *(
                    markdown_table(block)
                    if isinstance(block, Table)
                    else [f"![{block.caption}](figures/{block.name}.png)"]
                ),
                "",
            ]
    return "\n".join(lines).rstrip() + "\n"


def markdown_table(table: Table) -> list[str]:
    """The lines of a table in GitHub Markdown."""
    rule = [":--" if i < table.left else "--:" for i in range(len(table.headers))]
    return ["| " + " | ".join(map(_markdown_cell, row)) + " |" for row in (table.headers, tuple(rule), *table.rows)]


def _markdown_cell(text: str) -> str:
    escaped = _one_line(text).replace("\\", "\\\\").replace("|", "\\|")
    return re.sub(r"([*<`])", r"\\\1", escaped)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def latex(document: Document) -> str:
    """The tables that belong into a paper, to be used with \\input; needs booktabs."""
    lines = ["% needs \\usepackage{booktabs}; made by udpbench.results.report, do not edit"]
    for section in document.sections:
        for block in section.blocks if section.in_latex else ():
            if isinstance(block, Table):
                lines += ["", *_latex_table(block, block.caption or section.title)]
    return "\n".join(lines) + "\n"


def _latex_table(table: Table, caption: str) -> list[str]:
    columns = "l" * table.left + "r" * (len(table.headers) - table.left)
    rows = [" & ".join(map(latex_text, row)) + r" \\" for row in table.rows]
    head = " & ".join(map(latex_text, table.headers)) + r" \\"
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    return [r"\begin{table}", r"\centering", rf"\caption{{{latex_text(caption)}}}", *body, r"\end{table}"]


def latex_text(text: str) -> str:
    """Plain text with LaTeX's special characters escaped."""
    parts = _one_line(text).split("->")
    return r"$\to$".join("".join(_LATEX.get(c, c) for c in part) for part in parts)


def page(document: Document) -> str:
    """One HTML page: style inside, figures as data, nothing loaded from anywhere."""
    title = html.escape(document.title)
    body = "\n".join(_html_section(section) for section in document.sections)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    head += f"<style>{_STYLE}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><h1>{title}</h1>\n{body}\n</body></html>\n'


def _html_section(section: Section) -> str:
    parts = [f"<h{section.level}>{html.escape(section.title)}</h{section.level}>"]
    parts += [f"<p>{html.escape(text)}</p>" for text in section.text]
    parts += [_html_table(block) if isinstance(block, Table) else _html_figure(block) for block in section.blocks]
    return "\n".join(parts)


def _html_table(table: Table) -> str:
    def row(cells: tuple[str, ...], tag: str) -> str:
        marks = ['class="l"' if i < table.left else "" for i in range(len(cells))]
        return (
            "<tr>"
            + "".join(f"<{tag} {m}>{html.escape(c)}</{tag}>" for c, m in zip(cells, marks, strict=True))
            + "</tr>"
        )

    caption = f"<caption>{html.escape(table.caption)}</caption>" if table.caption else ""
    body = "\n".join(row(cells, "td") for cells in table.rows)
    head = row(table.headers, "th")
    return f'<div class="wide"><table>{caption}<thead>{head}</thead><tbody>\n{body}\n</tbody></table></div>'


def _html_figure(figure: Figure) -> str:
    data = base64.b64encode(figure.png).decode()
    caption = html.escape(figure.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )
