"""Popularity, a Markov chain and windowed counts; imported part by part."""
