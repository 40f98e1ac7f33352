"""The oracle: every op in plain PyTorch, padded and dense, one file an op, each equation cited.

Nothing here is sped up at the price of clarity. All functions work in float64, are differentiable
by autograd alone, and are traceable by ``torch.compile``. Everything else is checked against them.
"""
