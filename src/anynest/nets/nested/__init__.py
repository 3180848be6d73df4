"""Nested networks: growth (data) -> architecture -> wiring -> plan (graph) -> one engine."""
