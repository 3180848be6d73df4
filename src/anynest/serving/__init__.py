"""Serving under load: deadlines that cover the work, and depth that is shed before requests."""
