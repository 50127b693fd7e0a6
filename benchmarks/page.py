"""Figures in pages: what stands between two markers is written by a script."""

from pathlib import Path


def fill(page: Path, marker: str, text: str) -> None:
    """Puts text between <!-- marker:begin --> and <!-- marker:end --> of a page."""
    begin, end = f"<!-- {marker}:begin -->\n", f"<!-- {marker}:end -->\n"
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")
