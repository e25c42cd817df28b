"""The rows on the device: what a step reads and writes there, so that a next input never passes through the host."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.decode_rows import RowColumns

MAX_STOP_IDS = 320
"""The scheduler lets a request name 256; the model's own come on top."""

INTEGERS = ("last_token", "num_tokens", "max_tokens", "done", "top_k", "seed", "stops_from")
REALS = ("temperature", "top_p", "min_p", "repetition", "frequency", "presence")


@dataclass(frozen=True, slots=True)
class SamplingColumns:
    """Sampling parameters of n rows, gathered."""

    temperature: torch.Tensor
    """float32 [n], as are top_p, min_p and the penalties."""
    top_k: torch.Tensor
    """int64 [n]; 0 keeps all."""
    top_p: torch.Tensor
    min_p: torch.Tensor
    repetition: torch.Tensor
    frequency: torch.Tensor
    presence: torch.Tensor
    seeds: torch.Tensor
    """int64 [n]: the bits of a uint64."""
    positions: torch.Tensor
    """int64 [n]: of the token to be drawn."""
    stops_from: torch.Tensor
    """int64 [n]: tokens that a row holds when stop tokens may first be drawn."""


class DeviceRows:
    """Columns [max_rows + 1]; the last row is always done, and fills batches up to a fixed size."""

    def __init__(self, max_rows: int, max_blocks: int, device: torch.device) -> None:
        self.fill_row = max_rows
        num_rows = max_rows + 1
        self._integers = torch.zeros((len(INTEGERS), num_rows), dtype=torch.int64, device=device)
        self._reals = torch.zeros((len(REALS), num_rows), dtype=torch.float32, device=device)
        self._stop_ids = torch.full((num_rows, MAX_STOP_IDS), -1, dtype=torch.int32, device=device)
        self.block_table = torch.zeros((num_rows, max_blocks), dtype=torch.int32, device=device)
        last_token, num_tokens, max_tokens, done = self._integers[:4]
        self.columns = RowColumns(last_token, num_tokens, max_tokens, done, self._stop_ids, self.block_table)
        done[max_rows] = 1

    def sampling(self, batch_rows: torch.Tensor) -> SamplingColumns:
        """The parameters of some rows, int64 [n]."""
        integers = dict(zip(INTEGERS, self._integers.index_select(1, batch_rows), strict=True))
        reals = dict(zip(REALS, self._reals.index_select(1, batch_rows), strict=True))
        return SamplingColumns(
            **reals,
            top_k=integers["top_k"],
            seeds=integers["seed"],
            positions=integers["num_tokens"],
            stops_from=integers["stops_from"],
        )

    def update(self, changes: Mapping[str, torch.Tensor]) -> None:
        """Apply what `RowChanges.arrays` of a command made, now on the device."""
        if "added_rows" in changes:
            rows = changes["added_rows"]
            self._integers.index_copy_(1, rows, changes["added_integers"])
            self._reals.index_copy_(1, rows, changes["added_reals"])
            self._stop_ids.index_copy_(0, rows, changes["added_stop_ids"])
        if "table_places" in changes:
            self.block_table.view(-1).index_copy_(0, changes["table_places"], changes["table_blocks"])


class RowChanges:
    """What one command changes in the columns, gathered on the host."""

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        self._rows: list[int] = []
        self._integers: list[list[int]] = []
        self._reals: list[list[float]] = []
        self._stop_ids: list[NDArray[np.int32]] = []
        self._places: list[NDArray[np.int64]] = []
        self._blocks: list[NDArray[np.int32]] = []

    def add_row(
        self, row: int, integers: Mapping[str, int], reals: Mapping[str, float], stop_ids: NDArray[np.int32]
    ) -> None:
        """A row is taken: its columns by name, `done` at 0; at most MAX_STOP_IDS stop ids."""
        self._rows.append(row)
        self._integers.append([integers.get(name, 0) for name in INTEGERS])
        self._reals.append([reals[name] for name in REALS])
        padded = np.full(MAX_STOP_IDS, -1, np.int32)
        padded[: len(stop_ids)] = stop_ids
        self._stop_ids.append(padded)

    def add_blocks(
        self, rows: NDArray[np.int64] | int, columns: NDArray[np.int64], block_ids: NDArray[np.int32]
    ) -> None:
        """Entries of block tables: at each row and column, or all of one row, stands an id now."""
        self._places.append(rows * self._max_blocks + columns)
        self._blocks.append(block_ids)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """For the one copy to the device; what did not change is left out."""
        found: dict[str, NDArray[np.generic]] = {}
        if self._rows:
            found["added_rows"] = np.array(self._rows, np.int64)
            found["added_integers"] = np.array(self._integers, np.int64).T
            found["added_reals"] = np.array(self._reals, np.float32).T
            found["added_stop_ids"] = np.stack(self._stop_ids)
        places = np.concatenate(self._places) if self._places else np.empty(0, np.int64)
        if len(places):
            found["table_places"] = places
            found["table_blocks"] = np.concatenate(self._blocks)
        return found
