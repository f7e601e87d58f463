"""The labelled layer that analyses share: pairs of runs over training, with two intervals."""
