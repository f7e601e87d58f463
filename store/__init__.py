"""What the probes saw, as labelled arrays on disk: one Zarr hierarchy a run, one folder a study."""
