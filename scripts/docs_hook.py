"""What MkDocs calls to build the site of docs/: README is its first page, and files that pages link to come along.

Markdown from elsewhere becomes pages too, so that no link leads out of the site.
"""

import re
from pathlib import Path
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
REST = "repository"  # where files from outside docs/ stand in the site
_LINK = re.compile(r"(\]\()([^)\s#]+)([^)\s]*\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages link to, and what those pages link to."""
    waiting = [_source(file.src_uri) for file in files if file.is_documentation_page()]
    seen = set(waiting)
    while waiting:
        page = waiting.pop()
        for _, link, _ in _LINK.findall((ROOT / page).read_text(encoding="utf-8")):
            target = _target(page, link)
            if target is None or target in seen:
                continue
            seen.add(target)
            if not target.startswith("docs/"):
                files.append(File.generated(config, _place(target), abs_src_path=str(ROOT / target)))
            if target.endswith(".md"):
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The text of a page, with links to where things stand in the site."""
    source, here = _source(page.file.src_uri), page.file.src_uri
    text = (ROOT / source).read_text(encoding="utf-8") if here == "index.md" else markdown

    def moved(match: re.Match[str]) -> str:
        target = _target(source, match[2])
        if target is None:
            return match[0]
        return f"{match[1]}{relpath(_place(target), Path(here).parent.as_posix() or '.')}{match[3]}"

    return _LINK.sub(moved, text)


def _source(src_uri: str) -> str:
    """The file of the repository that a page is made of."""
    if src_uri == "index.md":
        return "README.md"
    return src_uri.removeprefix(f"{REST}/") if src_uri.startswith(f"{REST}/") else f"docs/{src_uri}"


def _place(target: str) -> str:
    """Where a file of the repository stands in the site."""
    if target == "README.md":
        return "index.md"
    return target.removeprefix("docs/") if target.startswith("docs/") else f"{REST}/{target}"


def _target(page: str, link: str) -> str | None:
    """The file that a link of a page leads to; the README of a folder. None: it leads elsewhere."""
    if re.match(r"[a-z]+:", link):
        return None
    target = normpath(f"{Path(page).parent.as_posix()}/{link}")
    if (ROOT / target).is_dir():
        target += "/README.md"
    return target if (ROOT / target).is_file() else None
