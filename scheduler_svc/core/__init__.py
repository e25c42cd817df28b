"""The deterministic scheduler: events and a clock in, commands and token batches out; no I/O of any kind."""
