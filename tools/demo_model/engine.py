"""Asking a checkpoint through transformers, greedily and in batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo_model.chat import ASSISTANT_OPENING
from demo_model.evaluation import answer_room
from demo_model.sample import Answer, Sample, answer_from_message

_BATCH_TOKENS = 131_072
_BATCH_SEQUENCES = 192


class TransformersEngine:
    """Greedy generation with a checkpoint directory that transformers loads unchanged."""

    def __init__(self, checkpoint: Path, device: str, dtype: str, draft: Path | None = None) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
        self.raw = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self.device = device
        self.model = self._load(checkpoint, dtype)
        self.draft = self._load(draft, dtype) if draft else None
        self.agreed = 0
        self.compared = 0

    def _load(self, checkpoint: Path, dtype: str) -> Any:
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype))
        return model.to(self.device).eval()

    def answers(self, samples: list[Sample]) -> list[Answer]:
        """The model's answer to each sample, in order; samples of like length share a batch."""
        prompts = [
            self.tokenizer.apply_chat_template(
                sample.prompt(),
                tools=sample.tools,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
            for sample in samples
        ]
        rooms = [answer_room(sample, self.raw) for sample in samples]
        order = sorted(range(len(samples)), key=lambda index: len(prompts[index]), reverse=True)
        answers: list[Answer] = [Answer()] * len(samples)
        while order:
            longest = len(prompts[order[0]]) + max(rooms[index] for index in order)
            size = max(1, min(_BATCH_SEQUENCES, _BATCH_TOKENS // longest if self.device != "cpu" else 16))
            batch, order = order[:size], order[size:]
            texts = self._generate([prompts[index] for index in batch], max(rooms[index] for index in batch))
            for index, text in zip(batch, texts, strict=True):
                answers[index] = self._parse(text)
        return answers

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], room: int) -> list[str]:
        padded = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(self.device)
        output = self.model.generate(**padded, max_new_tokens=room, do_sample=False)
        begin = padded["input_ids"].shape[1]
        if self.draft is not None:
            self._compare(output, padded["attention_mask"], begin)
        texts = self.tokenizer.batch_decode(output[:, begin:], skip_special_tokens=False)
        return [text.split(self.tokenizer.eos_token)[0] for text in texts]

    def _compare(self, output: Tensor, mask: Tensor, begin: int) -> None:
        """Count at how many of the large model's tokens [B, T] the draft, given the same prefix, says the same."""
        written = torch.ones_like(output[:, begin:])
        ended = (output[:, begin:] == self.tokenizer.eos_token_id).long().cumsum(1)
        # The end of turn itself is a prediction that counts; the padding after it is not.
        valid = (ended - (output[:, begin:] == self.tokenizer.eos_token_id).long()) == 0
        whole = torch.cat([mask, written], dim=1)
        positions = (whole.cumsum(1) - 1).clamp(min=0)
        for row in range(0, output.shape[0], 16):
            part = slice(row, row + 16)
            logits = self.draft(output[part], attention_mask=whole[part], position_ids=positions[part]).logits
            same = logits[:, begin - 1 : -1].argmax(-1) == output[part, begin:]
            self.agreed += int((same & valid[part]).sum())
            self.compared += int(valid[part].sum())

    def _parse(self, text: str) -> Answer:
        try:
            return answer_from_message(self.tokenizer.parse_response(text, prefix=ASSISTANT_OPENING))
        except (ValueError, KeyError, TypeError):
            return Answer(content=text)
