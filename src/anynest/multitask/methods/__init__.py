"""Gradient combination methods: pure rules and the combiners around them."""
