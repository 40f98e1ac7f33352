"""ICLRec, contrast of augmented histories and of intents; imported part by part."""
