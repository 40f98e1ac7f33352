"""What each phase of :mod:`bench.gpu` does: ``run(results)``, writing as it goes.

A phase that launches kernels also has ``kernels()``, which does the same with as little as shows
every kernel: :mod:`bench.gpu.kernels` runs it while launches are collected.
"""
