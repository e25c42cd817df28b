"""`python -m tokenizer_svc`."""

from functools import partial

from quire.service import freeze_heap, run
from tokenizer_svc.server import TokenizerServicer
from tokenizer_svc.settings import TokenizerSettings

if __name__ == "__main__":
    run("tokenizer_svc", TokenizerSettings, partial(TokenizerServicer, on_loaded=freeze_heap))
