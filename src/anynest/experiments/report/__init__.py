"""Results files as one page and one Markdown file: tables, figures, verdicts, what is missing."""

from .build import Report, make_report
from .records import Source, find_files, read_all
from .write import write_report

__all__ = ["Report", "Source", "find_files", "make_report", "read_all", "write_report"]
