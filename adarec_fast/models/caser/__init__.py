"""Caser, convolutions over the last items; imported part by part."""
