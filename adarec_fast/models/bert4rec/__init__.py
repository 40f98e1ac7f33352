"""BERT4Rec, a Transformer that reads both ways; imported part by part."""
