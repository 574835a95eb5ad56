"""Deterministic simulation: the real law, board, orders and leases against a plant that misbehaves.

No sockets, no real time: one seed gives one history, and a seed is a full bug report.
"""
