"""How the offline API samples: OpenAI's parameters and the further ones of the HTTP API, under the same names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from quire.errors import InvalidRequest
from quire.packing import pack_float32, pack_int32
from quire.v1 import tokenizer_pb2, types_pb2


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen, and when a sequence ends. The services check the values; docs/api.md explains them."""

    n: int = 1
    """Sequences to generate from the prompt."""
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the likeliest so many tokens; 0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids."""
    seed: int | None = None
    """The same seed gives the same tokens; None draws one."""
    max_tokens: int | None = None
    """Most tokens to generate; None: as many as the context has room for."""
    min_tokens: int = 0
    stop: str | Sequence[str] = ()
    """Strings that end a sequence; its text stops before them."""
    stop_token_ids: Sequence[int] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    """Report log-probabilities: of each token, and of so many likeliest ones. None: none."""

    def fill(self, request: tokenizer_pb2.TextRequest) -> None:
        """Write everything into `request`. Raises InvalidRequest for a number that its field cannot hold."""
        try:
            request.sampling.CopyFrom(self._sampling())
            request.n = self.n
        except (ValueError, TypeError, OverflowError) as error:
            raise InvalidRequest(f"sampling parameters: {error}") from None
        request.stop.extend([self.stop] if isinstance(self.stop, str) else self.stop)
        request.include_stop_str_in_output = self.include_stop_str_in_output
        request.skip_special_tokens = self.skip_special_tokens

    def _sampling(self) -> types_pb2.SamplingParams:
        return types_pb2.SamplingParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            logit_bias_token_ids=pack_int32(list(self.logit_bias)),
            logit_bias_values=pack_float32(list(self.logit_bias.values())),
            seed=self.seed,
            logprobs=self.logprobs,
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens,
            stop_token_ids=pack_int32(list(self.stop_token_ids)),
            ignore_eos=self.ignore_eos,
        )
