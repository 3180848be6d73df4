"""Serving under load: deadlines that cover the work, and depth that is shed before requests.

The names are imported on first use (PEP 562): they need the extra ``serve``.
"""

from typing import TYPE_CHECKING

from .._lazy import lazy_attributes

if TYPE_CHECKING:
    from .http.app import create_app

__all__ = ["create_app"]

__getattr__ = lazy_attributes(__name__, {".http.app": ("create_app",)})
