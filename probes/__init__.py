"""Read-only instruments: each watches hook points by name and returns labelled arrays."""
