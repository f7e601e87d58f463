"""A page on which the text of the probe set is read, coloured by what models made of each token."""
