"""Texts of records and names are data in Markdown and LaTeX: nothing comes of what is in them but what is written."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from test_fuzz import ORDINARY
from test_table_report import TABLE, records

from normlab.report.latex import latex
from normlab.report.markup import in_latex, in_markdown
from normlab.report.render import markdown
from normlab.report.results import results_of

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
EVIL = (
    *("[x](http://evil.example)", "![x](http://evil.example/i.png)", "<img src=x onerror=alert(1)>", "<!-- x", "a|b|c"),
    *(
        "`code`",
        "**bold**",
        "_em_",
        "~~out~~",
        "&lt;b&gt;",
        "line\n\n# heading",
        "a\r\n| b | c |",
        "\\",
        "a\\",
        "$x^2$",
    ),
    *("<http://evil.example>", "[x]: http://evil.example", "\\input{/etc/passwd}", "50% & {more} #1 _a_ ~", "\x1b[31m"),
)


def shown(text: str) -> str:
    """What a reader sees of a cell of a table; nothing in it is other than text."""
    tokens = PARSER.parse(f"| a |\n| --- |\n| {in_markdown(text)} |\n")
    assert [token.type for token in tokens].count("td_open") == 1 and tokens[-1].type == "table_close"
    inline = [token for token in tokens if token.type == "inline"][-1]
    kinds = {child.type for child in inline.children or ()}
    assert kinds <= {"text", "text_special"}, (text, kinds)
    return "".join(child.content for child in inline.children or ())


@pytest.mark.parametrize("text", EVIL)
def test_markdown_shows_a_text_as_it_is(text):
    assert shown(text) == " ".join(text.replace("\x1b", "\\x1b").split())


@ORDINARY
@given(st.text(st.sampled_from(list("ab1 |`*_[]()<>!~&;#$\\:/\n-+=.")), max_size=20))
def test_any_text_is_shown_as_it_is(text):
    assert shown(text) == " ".join(text.split())


def test_addresses_are_no_links():
    """GitHub makes links of these without any brackets; CommonMark does not."""
    text = in_markdown("see http://evil.example, www.evil.example or me@evil.example at 0.3@0.6")
    assert not re.search(r"\w://|www\.|\w@[a-z]", text) and "0.3@0.6" in text


@pytest.mark.parametrize("text", EVIL)
def test_latex_has_no_command_of_a_text(text):
    """Every character that LaTeX reads otherwise is one of the escapes, whole."""
    escapes = r"\\textbackslash\{\}|\\textascii(circum|tilde)\{\}|\\[%&_#{}$]|\$[<>-]\$|\$\\pm\$|\{[\[*]\}"
    left = re.sub(escapes, "", in_latex(text))
    assert not set(left) & set("\\{}$%&#_^~\n")


def test_a_report_shows_a_strangers_records_as_data():
    evil = "[x](http://evil.example) <b> `c` | $y$ \\input{z}"
    strange = [r | {"data": evil, "device": evil, "commit": evil, "versions": {evil: evil}} for r in records()]
    results = results_of(TABLE, "digits", strange)
    tokens = PARSER.parse(markdown(results))
    inside = [child for token in tokens for child in token.children or ()]
    assert not [c for c in inside if c.type in ("link_open", "code_inline", "html_inline") and "evil" in str(c)]
    assert "<b>" not in PARSER.render(markdown(results)) and "evil.example)" not in str(
        [c.attrs for c in inside if c.type == "link_open"]
    )
    assert "\\input" not in latex(results)
