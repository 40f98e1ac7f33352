"""SASRec, a causal Transformer over the history; imported part by part."""
