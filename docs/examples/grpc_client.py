"""Streams from the inner services by gRPC: text from `Tokenizer.Generate`, ids from `Scheduler.Generate`.

    python docs/examples/grpc_client.py --tokenizer unix:/tmp/quire-x/tokenizer \\
        --scheduler unix:/tmp/quire-x/scheduler

`quire serve` prints both addresses. Needs only grpcio, protobuf and numpy besides the stubs in `quire.v1`; in
another language, generate stubs from protos/quire/v1, or ask the servers by reflection.
"""

import argparse
import uuid

import grpc
import numpy as np

from quire.v1 import scheduler_pb2, scheduler_pb2_grpc, tokenizer_pb2, tokenizer_pb2_grpc, types_pb2


def open_channel(address: str) -> grpc.Channel:
    """A channel to `host:port` or `unix:/path`; over a Unix socket, grpc needs telling what host to name."""
    return grpc.insecure_channel(address, options=[("grpc.default_authority", "localhost")])


def generate_text(tokenizer: tokenizer_pb2_grpc.TokenizerStub, prompt: str, max_tokens: int) -> None:
    """Print text as it comes."""
    request = tokenizer_pb2.TextRequest(
        request_id=uuid.uuid4().hex,
        chat=tokenizer_pb2.ChatPrompt(messages_json=f'[{{"role": "user", "content": "{prompt}"}}]'),
        sampling=types_pb2.SamplingParams(temperature=0, max_tokens=max_tokens),
        stream=True,
    )
    for delta in tokenizer.Generate(request):
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
    prompt_token_ids = tokenizer.Tokenize(tokenizer_pb2.TokenizeRequest(text=prompt)).token_ids
    request = scheduler_pb2.TokenRequest(
        request_id=uuid.uuid4().hex,
        prompt_token_ids=prompt_token_ids,
        sampling=types_pb2.SamplingParams(temperature=0, max_tokens=max_tokens),
    )
    for update in scheduler.Generate(request):
        print(np.frombuffer(update.token_ids, "<i4").tolist(), end=" ", flush=True)
    print()


def main() -> None:
    """Run both examples."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokenizer", required=True, help="address of the tokenizer service")
    parser.add_argument("--scheduler", required=True, help="address of the scheduler service")
    parser.add_argument("--prompt", default="Hello! Who are you?")
    parser.add_argument("--max-tokens", type=int, default=32)
    arguments = parser.parse_args()
    with open_channel(arguments.tokenizer) as to_tokenizer, open_channel(arguments.scheduler) as to_scheduler:
        tokenizer = tokenizer_pb2_grpc.TokenizerStub(to_tokenizer)
        scheduler = scheduler_pb2_grpc.SchedulerStub(to_scheduler)
        generate_text(tokenizer, arguments.prompt, arguments.max_tokens)
        generate_tokens(tokenizer, scheduler, arguments.prompt, arguments.max_tokens)


if __name__ == "__main__":
    main()
