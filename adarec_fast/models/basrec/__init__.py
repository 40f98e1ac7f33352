"""BASRec, samples mixed at the input and at the output; imported part by part."""
