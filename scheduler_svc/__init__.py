"""The scheduler service: sequences, KV blocks, replicas; token ids in, token ids out."""
