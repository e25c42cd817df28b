"""Where the services behind a name are: as containers and pods come and go, the name's addresses change."""

import asyncio
import ipaddress
import socket


async def addresses_of(target: str) -> frozenset[str]:
    """The addresses (ip:port) behind `host:port`; a target that needs no look-up, unix:/path or an IP, is its own.

    A host that has addresses of both families is one machine, not two: those of IPv4 stand for it. Raises OSError
    when the name has none at the moment, or nobody could be asked.
    """
    host, _, port = target.rpartition(":")
    if target.startswith("unix:") or _is_ip(host):
        return frozenset((target,))
    found = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    of_version_4 = {str(address[0]) for family, *_, address in found if family == socket.AF_INET}
    if of_version_4:
        return frozenset(f"{ip}:{port}" for ip in of_version_4)
    return frozenset(f"[{address[0]}]:{port}" for family, *_, address in found if family == socket.AF_INET6)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
