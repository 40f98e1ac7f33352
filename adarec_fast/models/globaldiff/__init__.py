"""GlobalDiff, a diffusion over all items behind a frozen encoder; imported part by part."""
