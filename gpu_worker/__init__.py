"""The worker: one process per device, which holds weights, KV cache and rows, and runs what it is told."""
