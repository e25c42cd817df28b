"""One module per family of tasks; each exposes generators `(rng) -> Sample`."""
