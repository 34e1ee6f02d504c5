"""What a run is on disk and as processes: workdir, checkpoints, interruption, reporting."""
