"""The outside world, simulated at the wire: plant, field devices, GPU firmware, grid operator."""
