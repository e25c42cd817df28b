"""What `quire serve` decides before anything has started."""

from itertools import islice

from quire.cli.serve import _free_addresses


def test_no_address_is_given_to_two_services() -> None:
    """Of so many that are drawn anew, some would be."""
    addresses = list(islice(_free_addresses(8000), 2000))
    assert len(set(addresses)) == 2000
    assert "127.0.0.1:8000" not in addresses
