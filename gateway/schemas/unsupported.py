"""Fields of OpenAI, vLLM and SGLang that would change the answer and that this server cannot honour.

To ignore them would be to answer a question that was not asked: vLLM's renamed `guided_*` fields gave clients
unconstrained output with status 200. So anything but a value that asks for nothing is refused by name.
"""

from collections.abc import Mapping
from typing import Any

from quire.errors import InvalidRequest

# Field → values besides null that ask for nothing.
_BOTH: Mapping[str, tuple[Any, ...]] = {
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "ebnf": ("",),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "json_schema": (),
    "length_penalty": (1, 1.0),
    "logits_processors": ([],),
    "logprob_token_ids": ([],),
    "lora_path": (),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "regex": (),
    "response_format": ({"type": "text"},),
    "stop_regex": ([], ""),
    "structural_tag": (),
    "structured_outputs": ({},),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}
_CHAT: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "include_reasoning": (True,),
    "modalities": (["text"],),
    "prediction": (),
    "separate_reasoning": (True,),
    "thinking_token_budget": (),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_COMPLETION: Mapping[str, tuple[Any, ...]] = {"suffix": ("",)}

CHAT_FIELDS = {**_BOTH, **_CHAT}
COMPLETION_FIELDS = {**_BOTH, **_COMPLETION}


def refuse_unsupported(extras: Mapping[str, Any] | None, fields: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise InvalidRequest for the first of `extras` that is among `fields` and asks for something."""
    for name, value in (extras or {}).items():
        harmless = fields.get(name)
        if harmless is not None and value is not None and value not in harmless:
            raise InvalidRequest(f"{name} is not supported by this server; leave it out", param=name)
