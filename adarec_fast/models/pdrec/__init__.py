"""PDRec, a sequential model whose training a diffusion of preferences steers; imported part by
part."""
