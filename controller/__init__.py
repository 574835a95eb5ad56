"""The daemon on the power block's edge host, and the agent on each GPU host."""
