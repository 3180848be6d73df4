"""Costs and latencies of a network's stages, counted and measured (docs/profile.md)."""

from .profile import Profile
from .times import ProfileError, StageLatency

__all__ = ["Profile", "ProfileError", "StageLatency"]
