"""The report of results files, as an HTML page and a Markdown file."""

from .build import Report, make_report
from .sources import Source, find_files, read_all
from .write import write_report

__all__ = ["Report", "Source", "find_files", "make_report", "read_all", "write_report"]
