"""Nested anytime networks and Orthogonalized SGD (Wan, Hoffmann, Lu, Maire, ICML 2020)."""

from .nets import AnytimeNetwork, create_model, list_models, register

__version__ = "0.1.0"

__all__ = ["AnytimeNetwork", "__version__", "create_model", "list_models", "register"]
