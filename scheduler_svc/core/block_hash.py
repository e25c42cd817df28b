"""The identity of a full KV block: a hash over everything its content depends on."""

from hashlib import blake2b

HASH_BYTES = 16


def root_hash(revision: str, tenant: str, cache_salt: str) -> bytes:
    """Parent of a sequence's first block; HASH_BYTES long.

    What isolates one cache from another (model revision, tenant, salt) enters here once, and reaches every
    block through its chain of parents.
    """
    digest = blake2b(digest_size=HASH_BYTES, person=b"quire-root")
    for field in (revision, tenant, cache_salt):
        data = field.encode("utf-8", "surrogatepass")
        # Lengths keep ("ab", "c") and ("a", "bc") apart.
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


def public_root(revision: str) -> bytes:
    """Parent of the first block of a prefix that is shared with every tenant; HASH_BYTES long."""
    return blake2b(
        revision.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES, person=b"quire-public"
    ).digest()


def private_parent(parent: bytes, root: bytes) -> bytes:
    """Parent of the first private block after a public prefix: from here on the chain is the tenant's own."""
    return blake2b(parent + root, digest_size=HASH_BYTES, person=b"quire-private").digest()


def block_hash(parent: bytes, token_bytes: bytes) -> bytes:
    """Hash of a full block: `parent` is the hash before it, `token_bytes` its int32[block_size] tokens."""
    return blake2b(parent + token_bytes, digest_size=HASH_BYTES).digest()
