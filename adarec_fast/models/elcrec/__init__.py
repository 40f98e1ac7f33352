"""ELCRec, intents as centres that gradients move; imported part by part."""
