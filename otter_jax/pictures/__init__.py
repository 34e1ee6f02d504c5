"""What a run shows instead of telling."""
