"""Models: one decoder, configured by a checkpoint's config.json, and the loader that fills it."""
