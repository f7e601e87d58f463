"""Claims of the reference study as contrasts of correlations, tested over text and over runs."""
