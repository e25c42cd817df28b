"""A block's hash stands for everything its content depends on."""

from hypothesis import given
from hypothesis import strategies as st

from quire.packing import pack_int32
from scheduler_svc.core.block_hash import HASH_BYTES, block_hash, root_hash


@given(st.lists(st.tuples(st.text(), st.text(), st.text()), min_size=2, max_size=2, unique=True))
def test_caches_that_differ_in_any_field_share_no_root(fields: list[tuple[str, str, str]]) -> None:
    first, second = (root_hash(*names) for names in fields)
    assert first != second
    assert len(first) == HASH_BYTES


def test_fields_cannot_run_into_each_other() -> None:
    assert root_hash("r", "ab", "c") != root_hash("r", "a", "bc")


def test_the_same_tokens_after_another_parent_are_another_block() -> None:
    tokens = pack_int32(range(16))
    first, second = (block_hash(root_hash("r", tenant, ""), tokens) for tenant in ("a", "b"))
    assert first != second
    assert block_hash(first, tokens) != first
