"""Benchmarks: ``pytest bench/ --benchmark-only``; workloads, baselines, results and reports.

Not part of the installed package: run everything here from the root of a clone.
"""
