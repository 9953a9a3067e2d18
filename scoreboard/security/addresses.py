"""Client addresses: the peer's, or the one that trusted proxies forward. No I/O."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from scoreboard.errors import SettingInvalid

Network = IPv4Network | IPv6Network


def trusted_networks(listed: Iterable[str]) -> tuple[Network, ...]:
    """Parse SCOREBOARD_TRUSTED_HOPS.

    Raises SettingInvalid, naming it, for an invalid address or network.
    """
    return tuple(_network(text) for text in listed)


def client_address(peer: str, forwarded: Iterable[str], hops: tuple[Network, ...]) -> str:
    """Return the client's address in the form that limits count: IPv4, or an IPv6 /64 network."""
    return _counted(forwarded_address(peer, forwarded, hops))


def forwarded_address(peer: str, forwarded: Iterable[str], hops: tuple[Network, ...]) -> str:
    """Return the client's whole address, for logs.

    ``forwarded`` are the values of X-Forwarded-For. They are read from the right, as far as trusted
    hops wrote them.
    """
    address = _parse(peer)
    if address is None or not hops:
        return _canonical(peer)
    if _is_trusted(address, hops):
        for text in reversed([part for value in forwarded for part in value.split(",")]):
            named = _parse(text.strip())
            if named is None:
                break
            address = named
            if not _is_trusted(named, hops):
                break
    return str(address)


def request_address(peer: str, headers: Mapping[bytes, bytes], hops: tuple[Network, ...]) -> str:
    """Return the client's address of a request; ``headers`` have names in lower case."""
    forwarded = headers.get(b"x-forwarded-for", b"").decode("latin-1")
    return client_address(peer, [forwarded], hops)


def is_trusted_hop(peer: str, hops: tuple[Network, ...]) -> bool:
    """Return whether a peer is a trusted hop, which forwards requests of many clients."""
    address = _parse(peer)
    return address is not None and _is_trusted(address, hops)


@lru_cache(maxsize=4096)
def _parse(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


@lru_cache(maxsize=4096)
def _canonical(text: str) -> str:
    return str(_parse(text) or text)


@lru_cache(maxsize=4096)
def _counted(text: str) -> str:
    address = _parse(text)
    if isinstance(address, IPv6Address):
        # A household or a server usually has a whole /64.
        return str(IPv6Network((address, 64), strict=False))
    return text


def _is_trusted(address: IPv4Address | IPv6Address, hops: Iterable[Network]) -> bool:
    return any(address in hop for hop in hops)


def _network(text: str) -> Network:
    try:
        return ip_network(text.strip(), strict=False)
    except ValueError:
        raise SettingInvalid(
            f"SCOREBOARD_TRUSTED_HOPS: {text!r} is not an address or network"
        ) from None
