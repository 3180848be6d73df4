"""Vision transformers nested in width, or in width and depth (docs/transformers.md)."""
