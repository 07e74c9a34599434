"""Texts as Markdown and LaTeX show them: names and records may come from anyone, and are no markup.

in_markdown("a|b [c](d)")   no link, image, HTML, table cell, formula or emphasis comes of a text
in_latex("50% of $x$")      no command or formula does
"""

import re

from normlab.errors import plain

_MARKDOWN = re.compile(
    r"""[\\`*|\[~$]             # code, emphasis, cells, links, strikethrough, formulas
    | (?<!\w)_ | _(?!\w)        # emphasis; within a word it is none
    | <(?=[a-z/!?])             # HTML
    | &(?=\#?\w+;)              # a character by its name
    | :(?=//) | (?<=www)\.      # an address, which GitHub makes a link of""",
    re.VERBOSE | re.IGNORECASE,
)
_MAIL = re.compile(r"(?<=[\w.+-])@(?=[\w.-]*[a-zA-Z])")  # no backslash keeps GitHub from linking it
_LATEX = {
    **{character: f"\\{character}" for character in "%&_#{}$"},
    **{"\\": "\\textbackslash{}", "^": "\\textasciicircum{}", "~": "\\textasciitilde{}"},
    **{"<": "$<$", ">": "$>$", "[": "{[}", "*": "{*}"},  # the last two are arguments behind the end of a row
    **{"±": "$\\pm$", "−": "$-$", "–": "--"},
}


def in_markdown(text: str) -> str:
    return _MAIL.sub("<!-- -->@", _MARKDOWN.sub(r"\\\g<0>", one_line(text)))


def in_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def one_line(text: str) -> str:
    """Without line breaks and control characters."""
    return plain(" ".join(text.split()))
