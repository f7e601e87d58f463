"""The labelled layer of analyses of routing: runs, layers and steps around the array functions."""
