"""The ledger of deviations, conf/deviations.yaml: where papers and released code differ, and what normlab does.

deviations(table) -> ["variance of a map: ...", ...]      those that concern a table, a line each
ledger() -> "# Deviations ..."                            all of them, docs/deviations.md
"""

from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from typing import Any, Literal

from normlab import schema
from normlab.config import conf_dir
from normlab.reading import naming, read_yaml
from normlab.report.table import Table
from normlab.values import coerce

_PAPERS = {  # key in results/paper -> its name here, and how the names of its tables begin (conf/table)
    "sn_distinct": ("Distinct", "distinct_"),
    "sn_iclr": ("SN", "sn_"),
    "sn_tpami": ("SN-TPAMI", "sn_"),
    "ws": ("WS", "ws_"),
    "hn": ("HN", "hn_"),
}
_TITLES = {
    "code": "Papers and released code",
    "paper": "Papers and each other, or themselves",
}
_OPENING = """\
# Deviations

Where the five papers differ from each other, from themselves or from the code that their authors released; what
normlab does, and the settings for the other way. Reports of tables end with the entries that concern them. This file
is made from [conf/deviations.yaml](../conf/deviations.yaml) by `python scripts/deviations.py`; what the papers print,
and what could not be read of it, is in [results/paper](../results/paper/README.md).

S, P, D and W stand for the released code: Switchable-Normalization, Sparse_SwitchNorm, SwitchNorm_Detection and
WeightStandardization. None of it is part of normlab. `norm.profile=official` and `weight.profile=official` compute
what it computes; the other options are settings that exist anyway.

    normlab train norm=sn norm.profile=official                     # SN as released
    normlab train norm=gn weight=ws weight.profile=official         # Weight Standardization as released
    normlab import FILE                                             # a released checkpoint (exchange.md)
"""


@dataclass
class Deviation:
    """An entry of the ledger.

    Attributes:
        topic: what it is about.
        kind: code: a paper and its code differ; paper: papers do, or one with itself.
        papers: keys of results/paper.
        says: place -> what it says there.
        default: what normlab does.
        option: words of a command line that choose the other way; None: there is none.
        tables: patterns of names in conf/table; None: all of these papers.
    """

    topic: str
    kind: Literal["code", "paper"]
    papers: list[str]
    says: dict[str, str]
    default: str
    option: list[str] | None = None
    tables: list[str] | None = field(default=None)

    def concerns(self, table: Table) -> bool:
        sources = {source.file for source in table.paper}
        begins = {paper for paper, (_, prefix) in _PAPERS.items() if table.name.startswith(prefix)}
        listed = self.tables is None or any(fnmatch(table.name, pattern) for pattern in self.tables)
        return listed and not (sources or begins).isdisjoint(self.papers)

    def line(self) -> str:
        """As Markdown, on one line."""
        says = "; ".join(f"{place}: {what}" for place, what in self.says.items())
        return f"**{self.topic}**: {says}. Here: {self.default}.{self._option(' Else: ')}"

    def _option(self, before: str) -> str:
        return f"{before}`{' '.join(self.option)}`" if self.option else ""

    def row(self) -> str:
        says = "<br>".join(f"{place}: {what}" for place, what in self.says.items())
        papers = ", ".join(_PAPERS[paper][0] for paper in self.papers)
        return f"| {self.topic} | {papers} | {says} | {self.default} | {self._option('') or '–'} |"


@cache
def load_deviations() -> tuple[Deviation, ...]:
    """The whole ledger. Raises UserError on an entry that is not as `Deviation` says."""
    file = conf_dir() / "deviations.yaml"
    fields = schema.parameters_of(Deviation)
    with naming(file):
        nodes = coerce(read_yaml(file), list[dict[str, Any]], "deviations")
        return tuple(Deviation(**schema.check(node, fields, f"deviations.{i}")) for i, node in enumerate(nodes))


def deviations(table: Table) -> list[str]:
    """What concerns a table, as lines of Markdown."""
    return [deviation.line() for deviation in load_deviations() if deviation.concerns(table)]


def ledger() -> str:
    """docs/deviations.md."""
    parts = [_OPENING]
    for kind, title in _TITLES.items():
        rows = [deviation.row() for deviation in load_deviations() if deviation.kind == kind]
        header = "| topic | papers | what is said where | normlab | the other way |\n| --- | --- | --- | --- | --- |"
        parts.append(f"## {title}\n\n{header}\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)
