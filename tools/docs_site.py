"""What the site of `make docs` needs beside mkdocs.yml.

Its first page is the README, in the place of docs/index.md, so that there is one text and not two. Pages from elsewhere
in the repository are taken in. Links that lead to these, or out of docs/ to a source file, work in the repository as
they stand; here they are turned into what the site has.
"""

from __future__ import annotations

import re
from os.path import relpath
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
# Where pages and pictures lie, and where they go on the site.
TAKEN_IN = {
    "ep2ploc_core/weights/edge.md": "weights/edge.md",
    **{f"benchmarks/results/{file.name}": f"images/{file.name}" for file in ROOT.glob("benchmarks/results/*.png")},
}

_LINK = re.compile(r"(?P<image>!?)\[(?P<label>[^\]]*)\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Takes pages and pictures in from elsewhere in the repository."""
    for source, page in TAKEN_IN.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The text of a page, with the README for docs/index.md."""
    place = page.file.src_uri
    if place == "index.md":
        return for_site(README.read_text(), README, place)
    lies_at = {page: ROOT / source for source, page in TAKEN_IN.items()}
    return for_site(markdown, lies_at.get(place, DOCS / place), place)


def for_site(markdown: str, file: Path, place: str) -> str:
    """The text of a file of the repository with links that are right at a place on the site. Links to files that the
    site has not become their label; those to nothing stay, for MkDocs to complain of."""

    def link(found: re.Match[str]) -> str:
        target = (file.parent / found["path"]).resolve()
        if not target.is_relative_to(ROOT) or not target.exists():
            return found[0]
        name = target.relative_to(ROOT).as_posix()
        if target == README:
            name = "index.md"
        elif target.is_relative_to(DOCS):
            name = target.relative_to(DOCS).as_posix()
        elif name in TAKEN_IN:
            name = TAKEN_IN[name]
        else:
            return found["label"]
        way = relpath(name, Path(place).parent)
        return f"{found['image']}[{found['label']}]({way}{found['anchor'] or ''})"

    return _LINK.sub(link, markdown)
