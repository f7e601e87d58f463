"""From a labelled result to the terminal, a page, figures and machine-readable files."""
