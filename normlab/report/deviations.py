"""The ledger of deviations, conf/deviations.yaml: where papers and released code differ, and what normlab does.

concerning(table) -> [Deviation(...), ...]     those that concern a table
ledger() -> "# Deviations ..."                 all of them, docs/deviations.md
"""

import os
import re
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, Literal

from normlab import schema
from normlab.config import conf_dir
from normlab.reading import naming, read_yaml
from normlab.report.table import Table
from normlab.values import coerce

PAPERS = {  # key in results/paper -> its name here, and how the names of its tables begin (conf/table)
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
normlab does, and the settings for the other way. Reports of tables link the entries that concern them. This file
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
        begins = {paper for paper, (_, prefix) in PAPERS.items() if table.name.startswith(prefix)}
        listed = self.tables is None or any(fnmatch(table.name, pattern) for pattern in self.tables)
        return listed and not (sources or begins).isdisjoint(self.papers)

    @property
    def anchor(self) -> str:
        """Of its entry in the ledger: variance-of-a-map."""
        return re.sub(r"\W+", "-", self.topic.lower()).strip("-")

    @property
    def words(self) -> str:
        """Of a command line, for the other way; nothing where there is none."""
        return " ".join(self.option or ())

    def row(self) -> str:
        says = "<br>".join(f"{place}: {what}" for place, what in self.says.items())
        papers = ", ".join(PAPERS[paper][0] for paper in self.papers)
        option = f"`{self.words}`" if self.words else "–"
        return f'| <a id="{self.anchor}"></a>{self.topic} | {papers} | {says} | {self.default} | {option} |'


@cache
def load_deviations() -> tuple[Deviation, ...]:
    """The whole ledger. Raises UserError on an entry that is not as `Deviation` says."""
    file = conf_dir() / "deviations.yaml"
    fields = schema.parameters_of(Deviation)
    with naming(file):
        nodes = coerce(read_yaml(file), list[dict[str, Any]], "deviations")
        return tuple(Deviation(**schema.check(node, fields, f"deviations.{i}")) for i, node in enumerate(nodes))


def concerning(table: Table) -> list[Deviation]:
    return [deviation for deviation in load_deviations() if deviation.concerns(table)]


def page_from(folder: Path) -> str | None:
    """A link to docs/deviations.md from a folder of the same checkout; None elsewhere."""
    root = Path(__file__).resolve().parents[2]
    page, folder = root / "docs" / "deviations.md", folder.resolve()
    if not page.is_file() or not folder.is_relative_to(root):
        return None
    return Path(os.path.relpath(page, folder)).as_posix()


def ledger() -> str:
    """docs/deviations.md."""
    parts = [_OPENING]
    for kind, title in _TITLES.items():
        rows = [deviation.row() for deviation in load_deviations() if deviation.kind == kind]
        header = "| topic | papers | what is said where | normlab | the other way |\n| --- | --- | --- | --- | --- |"
        parts.append(f"## {title}\n\n{header}\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)
