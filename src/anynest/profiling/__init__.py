"""What each stage of a network costs, counted and measured (docs/profile.md)."""

from .errors import ProfileError
from .profile import Profile
from .times import StageLatency

__all__ = ["Profile", "ProfileError", "StageLatency"]
