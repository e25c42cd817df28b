"""Answers as OpenAI's JSON, whole or as events of a stream."""
