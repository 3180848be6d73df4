"""Exits for any network: heads on the activations of a network that knows nothing of them."""
