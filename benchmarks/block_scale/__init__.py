"""Sixteen racks of GPUs: how soon they obey, what that costs, and what others do instead."""
