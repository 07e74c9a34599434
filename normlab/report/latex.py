"""A table's results as LaTeX that fits a page of the class article: columns that find no room beside each other stand
below, and a table that is too tall goes on in another. It needs the package booktabs.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from normlab.report.markup import in_latex
from normlab.report.results import Results
from normlab.report.wording import heading, lines_of, notes, subtitle

_WIDTH = 336  # points, of 345 between the margins
_GAP = 6  # points between two columns
_LONGEST = 90  # points of a label in one line; longer ones are broken
_LINES = 55  # of a table on a page, with its caption
_RULE = 0.6  # of a line
_CAPTION = 78  # letters in a line of a caption


@dataclass(frozen=True)
class _Row:
    """The lines of one row of the table, cell by cell, beside its label."""

    label: str
    lines: Sequence[tuple[str, Sequence[str]]]  # whose numbers, and these

    @property
    def height(self) -> float:
        """In lines, with the rule above."""
        return max(len(self.lines), math.ceil(_points(self.label) / _LONGEST)) + _RULE


def latex(results: Results) -> str:
    """One table environment or more, with a caption and a label: tab:NAME-SCALE."""
    columns = list(results.table.column_labels.values())
    rows = list(_rows(results))
    caption = " ".join([heading(results) + ".", subtitle(results), *notes(results)])
    label = "tab:" + re.sub(r"[^A-Za-z0-9_-]", "-", f"{results.table.name}-{results.scale_name}")
    blocks = _blocks(columns, rows)
    pages = list(_pages(rows, blocks, -(-len(caption) // _CAPTION)))
    tables = []
    for number, page in enumerate(pages):
        first = number == 0
        tables += [
            "\\begin{table}[tp]",
            *([] if first else ["\\addtocounter{table}{-1}"]),
            f"\\caption{{{in_latex(caption if first else heading(results) + ', continued.')}}}",
            *([f"\\label{{{label}}}"] if first else []),
            "\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}",
            *_tabular(page, columns, max(len(block) for block, _ in page), _width_of(rows)),
            "\\end{table}",
        ]
    return "\n".join(["% needs \\usepackage{booktabs}", *tables]) + "\n"


def _rows(results: Results) -> Iterator[_Row]:
    label = ""
    lines: list[tuple[str, Sequence[str]]] = []
    for name, whose, values in lines_of(results):
        if name and lines:
            yield _Row(label, lines)
            lines = []
        label = name or label
        lines.append((whose, values))
    if lines:
        yield _Row(label, lines)


def _blocks(columns: Sequence[str], rows: Sequence[_Row]) -> list[list[int]]:
    """The columns that stand beside each other, in as few blocks as find room; one column may be too wide alone."""
    whose = max(_points(whose) for row in rows for whose, _ in row.lines)
    room = _WIDTH - _width_of(rows) - whose - 2 * _GAP
    widths = [
        max(map(_points, [label, *(values[k] for row in rows for _, values in row.lines)])) + _GAP
        for k, label in enumerate(columns)
    ]

    def width_of_block(block: list[int]) -> float:
        return sum(widths[k] for k in block)

    number = 1
    while number < len(columns) and max(map(width_of_block, _shared_out(len(columns), number))) > room:
        number += 1
    return _shared_out(len(columns), number)


def _shared_out(columns: int, blocks: int) -> list[list[int]]:
    """As evenly as can be."""
    ends = [round(k * columns / blocks) for k in range(blocks + 1)]
    return [list(range(start, end)) for start, end in itertools.pairwise(ends)]


def _width_of(rows: Sequence[_Row]) -> float:
    """Points, of the labels' column."""
    return min(_LONGEST, max(_points(row.label) for row in rows) + 1)


def _points(text: str) -> float:
    """How wide a text is in \\footnotesize, about: rather too much than too little."""
    return sum(6.8 if c.isupper() or c in "+±−<>=" else 3.0 if c in " .,()" else 4.5 for c in text)


def _pages(
    rows: Sequence[_Row], blocks: Sequence[list[int]], caption: int
) -> Iterator[list[tuple[list[int], list[_Row]]]]:
    """Of each table its pieces: some columns, and the rows of them that find room."""
    page: list[tuple[list[int], list[_Row]]] = []
    left: float = _LINES - caption
    for block in blocks:
        piece: list[_Row] = []
        left -= 2
        for row in rows:
            if row.height > left and (page or piece):
                if piece:
                    page.append((block, piece))
                yield page
                page, piece, left = [], [], _LINES - 4
            piece.append(row)
            left -= row.height
        page.append((block, piece))
    yield page


def _tabular(
    pieces: Iterable[tuple[list[int], list[_Row]]], columns: Sequence[str], across: int, width: float
) -> list[str]:
    found = [f"\\begin{{tabular}}{{p{{{width:.0f}pt}}l{'r' * across}}}", "\\toprule"]
    for number, (block, rows) in enumerate(pieces):
        found += ["\\midrule[\\heavyrulewidth]"] * (number > 0)
        found.append(f"& & {' & '.join(in_latex(columns[k]) for k in block)} \\\\")
        for row in rows:
            found.append("\\midrule")
            for at, (whose, values) in enumerate(row.lines):
                label = f"\\raggedright {in_latex(row.label)}" if at == 0 else ""
                found.append(f"{' & '.join([label, in_latex(whose), *(in_latex(values[k]) for k in block)])} \\\\")
    return [*found, "\\bottomrule", "\\end{tabular}"]
