"""Readers of data sets and images, one format a file."""
