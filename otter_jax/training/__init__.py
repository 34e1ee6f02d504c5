"""What a training run is made of: data, step, optimizer, loop."""
