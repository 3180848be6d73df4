"""Nested anytime networks and Orthogonalized SGD (Wan, Hoffmann, Lu, Maire, ICML 2020)."""
