"""Rendering of a document as HTML and Markdown, and of figures as SVG."""
