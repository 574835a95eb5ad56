"""How fast, how punctual, how small: `python -m benchmarks` measures what the design promises."""
