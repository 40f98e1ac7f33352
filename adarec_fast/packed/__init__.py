"""The ops in plain PyTorch on packed tokens: what runs where no extension could be built.

Only tokens and levels that exist are computed, so cost grows with the work and not with the
padding; sizes are read on the host, which is free on a CPU. Each module has ``fwd`` and, where the
op has a gradient, ``bwd``, with the arguments of the op's schemas. Backward recomputes the forward
pass, so that nothing but the inputs is kept.
"""
