"""Segmenting files."""
