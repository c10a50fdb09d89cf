"""Puts tables that were measured where the pages have a place for them.

    .venv/bin/python tools/readme_tables.py TABLES

TABLES is a directory of Markdown files; the file `street.md` goes into every page between `<!-- table: street -->` and
the next `<!-- end -->`. Places for which there is no file stay as they are. Nothing is written when a page is not well
formed, or when a table has no place.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from ep2ploc_core.errors import Ep2plocError, InputError
from ep2ploc_core.written_file import write_text

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_MARK = re.compile(r"<!-- (?:table: (?P<name>\w+)|end) -->\n?")
_LIKE_A_MARK = re.compile(r"<!--\s*(?:table|end)\b")


def places(text: str, page: str) -> list[str]:
    """The names of the tables that a page has places for, in their order.

    Raises InputError, with the page's name, when a place has no beginning, no end or another one in it.
    """
    if len(_LIKE_A_MARK.findall(text)) != len(_MARK.findall(text)):
        raise InputError(f"{page} has a mark of another form than <!-- table: NAME --> and <!-- end -->; mend it.")
    names, opened = [], ""
    for mark in _MARK.finditer(text):
        name = mark["name"] or ""
        if bool(name) == bool(opened):
            wrong = f"the table '{name}' begins within '{opened}'" if name else "an <!-- end --> has no beginning"
            raise InputError(f"In {page} {wrong}; each <!-- table: NAME --> needs its own <!-- end -->.")
        names += [name] if name else []
        opened = name
    if opened:
        raise InputError(f"In {page} the table '{opened}' has no <!-- end -->; put it where the table ends.")
    return names


def with_tables(text: str, tables: Mapping[str, str], page: str) -> str:
    """A page's text with these tables, by name, in their places. Raises InputError as `places` does."""
    places(text, page)

    def filled(found: re.Match[str]) -> str:
        name = found["name"]
        return f"<!-- table: {name} -->\n\n{tables[name].strip()}\n\n<!-- end -->" if name in tables else found[0]

    return re.sub(r"<!-- table: (?P<name>\w+) -->\n.*?<!-- end -->", filled, text, flags=re.DOTALL)


def check_places(tables: Iterable[str], pages: Iterable[Path] = PAGES) -> None:
    """Raises InputError when a page is not well formed or a table of these names has no place on any of them."""
    known = {name for page in pages for name in places(page.read_text(), page.name)}
    homeless = sorted(set(tables) - known)
    if homeless:
        raise InputError(
            f"No page has a place for the table '{homeless[0]}'; put <!-- table: {homeless[0]} --> and <!-- end --> "
            "where it belongs."
        )


def put_into_pages(tables: Mapping[str, str], pages: Iterable[Path] = PAGES) -> list[Path]:
    """Writes the tables into the pages; says which of these changed. Where `check_places` raises InputError nothing is
    written."""
    pages = list(pages)
    check_places(tables, pages)
    old = {page: page.read_text() for page in pages}
    new = {page: with_tables(text, tables, page.name) for page, text in old.items()}
    changed = [page for page in new if new[page] != old[page]]
    for page in changed:
        write_text(page, new[page])
    return changed


def read_tables(directory: Path) -> dict[str, str]:
    """The tables of a directory by name. Raises InputError when there are none."""
    tables = {file.stem: file.read_text() for file in sorted(directory.glob("*.md"))}
    if not tables:
        raise InputError(f"There are no tables (*.md) in {directory}; make them with `make evidence`.")
    return tables


def main() -> None:
    """Errors are one line on stderr and exit code 2, as with the `ep2ploc` command."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    try:
        changed = put_into_pages(read_tables(Path(sys.argv[1])))
    except Ep2plocError as error:
        print(f"readme_tables: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    for page in changed:
        print(f"{page.relative_to(ROOT)}: tables renewed")


if __name__ == "__main__":
    main()
