"""The HTTP gateway: the OpenAI API in front, one session to the tokenizer service behind."""
