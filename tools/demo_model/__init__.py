"""The bundled demo model: seeded data, tokenizer, training and evaluation."""
