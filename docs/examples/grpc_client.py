"""Streams from the inner services by gRPC: text from `Tokenizer.Generate`, ids from `Scheduler.Generate`.

    python docs/examples/grpc_client.py --tokenizer unix:/tmp/quire-x/tokenizer \\
        --scheduler unix:/tmp/quire-x/scheduler

`quire serve` prints both addresses. Where the services ask for certificates, `--certs FOLDER` names one with tls.crt,
tls.key and ca.crt (`quire certs` makes one for the operator); where they share a token, it is in QUIRE_RPC_TOKEN.
Needs only grpcio, protobuf and numpy besides the stubs in `quire.v1`; in another language, generate stubs from
protos/quire/v1, or ask the servers by reflection.
"""

import argparse
import os
import uuid
from pathlib import Path

import grpc
import numpy as np

from quire.v1 import scheduler_pb2, scheduler_pb2_grpc, tokenizer_pb2, tokenizer_pb2_grpc, types_pb2


def open_channel(address: str, service: str, certs: Path | None) -> grpc.Channel:
    """A channel to `host:port` or `unix:/path`, with the certificates in `certs` if there are any."""
    if certs is None:
        # Over a Unix socket, grpc needs telling what host to name.
        return grpc.insecure_channel(address, options=[("grpc.default_authority", "localhost")])
    key, certificate, authority = ((certs / name).read_bytes() for name in ("tls.key", "tls.crt", "ca.crt"))
    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    # Whatever its address, a service's certificate carries the service's name.
    return grpc.secure_channel(address, credentials, options=[("grpc.ssl_target_name_override", service)])


def token_metadata() -> list[tuple[str, str]]:
    """What each call carries where the services share a token."""
    token = os.environ.get("QUIRE_RPC_TOKEN")
    return [("authorization", f"Bearer {token}")] if token else []


def generate_text(tokenizer: tokenizer_pb2_grpc.TokenizerStub, prompt: str, max_tokens: int) -> None:
    """Print text as it comes."""
    request = tokenizer_pb2.TextRequest(
        request_id=uuid.uuid4().hex,
        chat=tokenizer_pb2.ChatPrompt(messages_json=f'[{{"role": "user", "content": "{prompt}"}}]'),
        sampling=types_pb2.SamplingParams(temperature=0, max_tokens=max_tokens),
        stream=True,
    )
    for delta in tokenizer.Generate(request, metadata=token_metadata()):
        print(delta.text, end="", flush=True)
        if delta.finish_reason:
            reason = types_pb2.FinishReason.Name(delta.finish_reason)
            print(f"\n[{reason}, {delta.usage.completion_tokens} tokens]")


def generate_tokens(
    tokenizer: tokenizer_pb2_grpc.TokenizerStub,
    scheduler: scheduler_pb2_grpc.SchedulerStub,
    prompt: str,
    max_tokens: int,
) -> None:
    """Print token ids as they come; integer arrays are packed little-endian bytes."""
    asked = tokenizer_pb2.TokenizeRequest(text=prompt)
    prompt_token_ids = tokenizer.Tokenize(asked, metadata=token_metadata()).token_ids
    request = scheduler_pb2.TokenRequest(
        request_id=uuid.uuid4().hex,
        prompt_token_ids=prompt_token_ids,
        sampling=types_pb2.SamplingParams(temperature=0, max_tokens=max_tokens),
    )
    for update in scheduler.Generate(request, metadata=token_metadata()):
        print(np.frombuffer(update.token_ids, "<i4").tolist(), end=" ", flush=True)
    print()


def main() -> None:
    """Run both examples."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokenizer", required=True, help="address of the tokenizer service")
    parser.add_argument("--scheduler", required=True, help="address of the scheduler service")
    parser.add_argument("--certs", type=Path, help="folder of tls.crt, tls.key and ca.crt, for mutual TLS")
    parser.add_argument("--prompt", default="Hello! Who are you?")
    parser.add_argument("--max-tokens", type=int, default=32)
    arguments = parser.parse_args()
    certs = arguments.certs
    with (
        open_channel(arguments.tokenizer, "tokenizer-svc", certs) as to_tokenizer,
        open_channel(arguments.scheduler, "scheduler-svc", certs) as to_scheduler,
    ):
        tokenizer = tokenizer_pb2_grpc.TokenizerStub(to_tokenizer)
        scheduler = scheduler_pb2_grpc.SchedulerStub(to_scheduler)
        generate_text(tokenizer, arguments.prompt, arguments.max_tokens)
        generate_tokens(tokenizer, scheduler, arguments.prompt, arguments.max_tokens)


if __name__ == "__main__":
    main()
