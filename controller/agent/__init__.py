"""The GPU node agent: writes power limits through NVML while it holds a lease, and falls back alone."""
