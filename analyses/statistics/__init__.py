"""The array layer: plain numpy in, plain numpy out, no labels, one file a subject."""
