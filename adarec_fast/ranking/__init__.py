"""Ranking the catalogue for histories: evaluation, recommendation, and their files."""
