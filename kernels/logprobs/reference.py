"""Plain torch."""

import torch


def logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `kernels.logprobs`."""
    every = torch.log_softmax(logits.float(), dim=-1)
    chosen = every.gather(1, token_ids[:, None])[:, 0]
    top_logprobs, top_ids = every.topk(num_top, dim=-1)
    return chosen, top_ids, top_logprobs
