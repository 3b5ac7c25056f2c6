"""Signed envelopes, after DSSE (github.com/secure-systems-lab/dsse, protocol.md): what is signed of one."""

from __future__ import annotations


def pre_authentication(kind: str, payload: bytes) -> bytes:
    """The bytes that are signed: a signature of one kind of payload is none of another."""
    name = kind.encode()
    return b"DSSEv1 %d %s %d %s" % (len(name), name, len(payload), payload)
