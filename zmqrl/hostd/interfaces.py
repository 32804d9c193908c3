"""The IPv4 addresses of this machine, by network interface."""

import ctypes
import socket
from typing import Any

UP = 1  # a flag of an interface


class _SocketAddress(ctypes.Structure):
    _fields_ = [("family", ctypes.c_ushort), ("port", ctypes.c_ushort), ("ipv4", ctypes.c_ubyte * 4)]


class _Entry(ctypes.Structure):
    """``struct ifaddrs`` of the C library."""


_Entry._fields_ = [
    ("next", ctypes.POINTER(_Entry)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.POINTER(_SocketAddress)),
    ("netmask", ctypes.c_void_p),
    ("broadcast", ctypes.c_void_p),
    ("data", ctypes.c_void_p),
]


def interfaces() -> dict[str, list[str]]:
    """The addresses by interface, such as ``{"lo": ["127.0.0.1"]}``. Empty if the system does not list them."""
    library = ctypes.CDLL(None)
    first = ctypes.POINTER(_Entry)()
    if library.getifaddrs(ctypes.byref(first)):
        return {}
    found: dict[str, list[str]] = {}
    entry: Any = first  # a null pointer is false
    while bool(entry):
        about = entry.contents
        if about.flags & UP and about.address and about.address.contents.family == socket.AF_INET:
            address = socket.inet_ntoa(bytes(about.address.contents.ipv4))
            found.setdefault(about.name.decode(errors="replace"), []).append(address)
        entry = about.next
    library.freeifaddrs(first)
    return found
