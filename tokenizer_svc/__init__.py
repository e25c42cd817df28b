"""The tokenizer service: the checkpoint's conventions in both directions. Knows neither HTTP nor GPUs."""
