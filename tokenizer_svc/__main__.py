"""`python -m tokenizer_svc`."""

from quire.service import run
from tokenizer_svc.server import TokenizerServicer
from tokenizer_svc.settings import TokenizerSettings

if __name__ == "__main__":
    run("tokenizer_svc", TokenizerSettings, TokenizerServicer)
