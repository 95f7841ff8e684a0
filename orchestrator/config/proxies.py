"""HTTP proxies of the environment (`http_proxy`, `HTTPS_PROXY`, `ALL_PROXY`, `no_proxy`).

A call to this machine never goes through a proxy, which could not reach this machine under that name. What
fails behind a proxy is told as such.
"""

import contextlib
import ipaddress
import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_this_machine(url: str) -> bool:
    """Whether a URL's host is this machine: a loopback name or address, its own name, or its own address."""
    host = _host(url).rstrip(".")
    if host == "localhost" or host.endswith(".localhost") or host == socket.gethostname().lower():
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified or _has_address(address)


def spare_this_machine(*urls: str) -> None:
    """Let no HTTP client of this process, or of a process that it starts, call this machine by a proxy.

    It adds this machine to `no_proxy`, the only place that requests, urllib and others all read.

    Args:
        urls: Addresses to call; their hosts are added too if they are this machine.
    """
    if not getproxies():
        return
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host for part in listed.split(",") if (host := part.strip())]
    named = [_host(url) for url in urls if is_this_machine(url)]
    missing = [host for host in dict.fromkeys((*_LOOPBACK, *named)) if host not in hosts]
    if "*" not in hosts and missing:
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join([*hosts, *missing])


def proxy_variable(url: str) -> str | None:
    """The environment variable, with its value, that sends calls of a URL through a proxy, or None."""
    parts, proxies = urlsplit(url), getproxies()
    scheme = next((name for name in (parts.scheme, "all") if proxies.get(name)), None)
    if scheme is None or is_this_machine(url) or proxy_bypass(parts.netloc):
        return None
    names = (f"{scheme}_proxy", f"{scheme.upper()}_PROXY")
    name = next((name for name in names if os.environ.get(name)), names[0])
    return f"{name}={_without_password(proxies[scheme])}"


def _host(url: str) -> str:
    """The host of a URL or of `host:port`; empty for what is neither."""
    try:
        return urlsplit(url if "//" in url else f"//{url}").hostname or ""
    except ValueError:
        return ""


def _has_address(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((str(address), 0))  # Works for an address of this machine only.
        return True
    return False


def _without_password(proxy: str) -> str:
    head, at, tail = proxy.rpartition("@")
    return f"{head.partition('//')[0]}//***@{tail}" if at else proxy
