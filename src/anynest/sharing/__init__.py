"""Trained networks on the Hugging Face Hub: the weights file and a model card."""

from .card import model_card
from .push import push_to_hub

__all__ = ["model_card", "push_to_hub"]
