"""CURVE: the keys of a run, who gets which, and who is admitted where.

Keys are made anew for each run. They are texts of 40 characters (Z85). Secret ones travel on standard input or lie in
files of mode 0600; ``repr`` does not show them.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils import z85

from zmqrl.errors import ClusterError, UsageError

DOMAIN = "zmqrl"
KEY_BYTES = 32

Speaker: TypeAlias = int | Literal["supervisor"]
"""Whose key it is: a worker's, by its rank, or the supervisor's."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A public key and its secret one."""

    public: str
    secret: str = field(repr=False)

    @classmethod
    def make(cls) -> "KeyPair":
        """A new pair."""
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """What a worker or the supervisor gets: its own pair, and the public key of each shard to know it by."""

    own: KeyPair
    shards: tuple[str, ...]

    def secure(self, socket: "zmq.Socket[bytes]", shard: int) -> None:
        """Make ``socket``, which is not connected yet, speak to ``shard`` and to nobody else."""
        socket.curve_publickey, socket.curve_secretkey = self.own.public.encode(), self.own.secret.encode()
        socket.curve_serverkey = self.shards[shard].encode()

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the secret key."""
        return {"public": self.own.public, "secret": self.own.secret, "shards": list(self.shards)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ClientKeys":
        """Inverse of :meth:`to_json`. Raises ValueError, KeyError or TypeError for what is none."""
        for key in (data["public"], data["secret"], *data["shards"]):
            if len(z85.decode(key)) != KEY_BYTES:
                raise ValueError("a key has not 40 characters")
        return cls(KeyPair(data["public"], data["secret"]), tuple(data["shards"]))

    @classmethod
    def read(cls, path: Path, *, run: str, rank: int) -> "ClientKeys":
        """Read the key file of ``rank``. Raises UsageError when it is missing, or not for this rank of this run."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            keys, found = cls.from_json(data), (data["run"], data["rank"])
        except OSError as error:
            raise UsageError(f"cannot read {path}, the keys of rank {rank}: {error.strerror}.") from error
        except (ValueError, KeyError, TypeError):  # not what is wrong in it: it may be a secret
            raise UsageError(f"{path} is no key file.") from None
        if found != (run, rank):
            raise UsageError(f"{path} has the keys of rank {found[1]} of run {found[0]}, not of rank {rank} of {run}.")
        return keys


@dataclass(frozen=True, slots=True)
class ShardKeys:
    """What a shard gets: its own pair, and the public keys of those whom it is to admit, workers by rank."""

    own: KeyPair
    supervisor: str
    workers: tuple[str, ...]

    def speakers(self) -> dict[str, Speaker]:
        """Who is who, by public key."""
        return {key: rank for rank, key in enumerate(self.workers)} | {self.supervisor: "supervisor"}

    def secure(self, socket: "zmq.Socket[bytes]") -> None:
        """Make ``socket``, which is not bound yet, admit only whom :func:`authenticate` does."""
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = self.own.public.encode(), self.own.secret.encode()
        socket.zap_domain = DOMAIN.encode()
        # Without this libzmq admits every key while nobody authenticates.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the secret key."""
        own = {"public": self.own.public, "secret": self.own.secret}
        return own | {"supervisor": self.supervisor, "workers": list(self.workers)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ShardKeys":
        """Inverse of :meth:`to_json`."""
        return cls(KeyPair(data["public"], data["secret"]), data["supervisor"], tuple(data["workers"]))


@dataclass(frozen=True, slots=True)
class RunKeys:
    """All keys of a run, workers' by rank. Only who starts its processes has them."""

    supervisor: KeyPair
    workers: tuple[KeyPair, ...]
    shards: tuple[KeyPair, ...]

    @classmethod
    def make(cls, *, workers: int, shards: int) -> "RunKeys":
        """New keys. Raises ClusterError where libzmq cannot encrypt."""
        if not zmq.has("curve"):
            raise ClusterError("this libzmq was built without CURVE: install pyzmq from its wheel.")
        return cls(
            KeyPair.make(),
            tuple(KeyPair.make() for _ in range(workers)),
            tuple(KeyPair.make() for _ in range(shards)),
        )

    def of_shard(self, shard: int) -> ShardKeys:
        """What ``shard`` is to be given."""
        return ShardKeys(self.shards[shard], self.supervisor.public, tuple(pair.public for pair in self.workers))

    def of_worker(self, rank: int) -> ClientKeys:
        """What worker ``rank`` is to be given."""
        return ClientKeys(self.workers[rank], tuple(pair.public for pair in self.shards))

    def of_supervisor(self) -> ClientKeys:
        """What speaks to the shards as their supervisor."""
        return ClientKeys(self.supervisor, tuple(pair.public for pair in self.shards))


class _Admission:
    """The question that pyzmq's authenticator asks of every key that knocks."""

    def __init__(self, keys: ShardKeys) -> None:
        self.admitted = frozenset(key.encode() for key in keys.speakers())

    def callback(self, domain: str, key: bytes) -> bool:
        return key in self.admitted


def authenticate(context: "zmq.Context[zmq.Socket[bytes]]", keys: ShardKeys) -> ThreadAuthenticator:
    """Admit the keys of the run, and no others, to the sockets of ``context`` until the authenticator is stopped.

    It answers libzmq's questions in a thread of its own, one for each connection.
    """
    authenticator = ThreadAuthenticator(context)
    authenticator.configure_curve_callback(DOMAIN, _Admission(keys))
    authenticator.start()
    return authenticator
