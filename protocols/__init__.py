"""Wires to numbers with units, and back. Knows nothing of control."""
