"""Makes the CURVE keys of a run, and restricts shards to connections with these keys.

Each session makes new keys. A key is a string of 40 characters (Z85). Secret keys are passed on standard input or
stored in files with mode 0600. ``repr`` hides secret keys.
"""

import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import zmq
from zmq.utils import z85

from zmqrl.errors import ClusterError, UsageError
from zmqrl.json_lines import read_json

DOMAIN = "zmqrl"
KEY_BYTES = 32
ZAP_ENDPOINT, ZAP_VERSION = "inproc://zeromq.zap.01", b"1.0"
LOOK_UP_EVERY_MS = 100

Speaker: TypeAlias = int | Literal["supervisor"]
"""The owner of a key: the rank of a worker, or the supervisor."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    public: str
    secret: str = field(repr=False)

    @classmethod
    def make(cls) -> "KeyPair":
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """The keys of a worker or of the supervisor: a key pair, and the public key of each shard."""

    own: KeyPair
    shards: tuple[str, ...]

    def secure(self, socket: "zmq.Socket[bytes]", shard: int) -> None:
        """Make ``socket`` accept only the process that has the key of ``shard``. Call this before you connect."""
        socket.curve_publickey, socket.curve_secretkey = self.own.public.encode(), self.own.secret.encode()
        socket.curve_serverkey = self.shards[shard].encode()

    def to_json(self) -> dict[str, Any]:
        """Plain data, including the secret key."""
        return {"public": self.own.public, "secret": self.own.secret, "shards": list(self.shards)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ClientKeys":
        """Inverse of :meth:`to_json`. Raises ValueError, KeyError or TypeError if the data is not valid."""
        for key in (data["public"], data["secret"], *data["shards"]):
            try:
                length = len(z85.decode(key))
            except struct.error as error:  # five characters stand for a number above 2^32
                raise ValueError("a key must be in Z85") from error
            if length != KEY_BYTES:
                raise ValueError("a key must have 40 characters")
        return cls(KeyPair(data["public"], data["secret"]), tuple(data["shards"]))

    @classmethod
    def read(cls, path: Path, *, run: str, rank: int) -> "ClientKeys":
        """Read the key file of ``rank``. Raises UsageError if the file is missing or belongs to another rank or run."""
        try:
            data = read_json(path)
            keys, found = cls.from_json(data), (data["run"], data["rank"])
        except OSError as error:
            raise UsageError(f"cannot read {path}, the keys of rank {rank}: {error.strerror}.") from error
        except (ValueError, KeyError, TypeError):  # hide the error: it may contain a secret
            raise UsageError(f"{path} is not a key file.") from None
        if found != (run, rank):
            raise UsageError(f"{path} has the keys of rank {found[1]} of run {found[0]}, not of rank {rank} of {run}.")
        return keys


@dataclass(frozen=True, slots=True)
class ShardKeys:
    """The keys of a shard: a key pair, and the public keys that the shard admits. ``workers`` are indexed by rank."""

    own: KeyPair
    supervisor: str
    workers: tuple[str, ...]

    def speakers(self) -> dict[str, Speaker]:
        """The owner of each admitted public key."""
        return {key: rank for rank, key in enumerate(self.workers)} | {self.supervisor: "supervisor"}

    def secure(self, socket: "zmq.Socket[bytes]") -> None:
        """Make ``socket`` admit only keys that an :class:`Authenticator` admits. Call this before you bind."""
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = self.own.public.encode(), self.own.secret.encode()
        socket.zap_domain = DOMAIN.encode()
        # Without this, libzmq admits every key while no authenticator runs.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def to_json(self) -> dict[str, Any]:
        """Plain data, including the secret key."""
        own = {"public": self.own.public, "secret": self.own.secret}
        return own | {"supervisor": self.supervisor, "workers": list(self.workers)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ShardKeys":
        """Inverse of :meth:`to_json`."""
        return cls(KeyPair(data["public"], data["secret"]), data["supervisor"], tuple(data["workers"]))


@dataclass(frozen=True, slots=True)
class RunKeys:
    """All keys of a run. ``workers`` are indexed by rank. Only the process that starts the run has all keys."""

    supervisor: KeyPair
    workers: tuple[KeyPair, ...]
    shards: tuple[KeyPair, ...]

    @classmethod
    def make(cls, *, workers: int, shards: int) -> "RunKeys":
        """Make new keys. Raises ClusterError when libzmq was built without encryption."""
        if not zmq.has("curve"):
            raise ClusterError("this libzmq was built without CURVE: install a pyzmq wheel from PyPI.")
        return cls(
            KeyPair.make(),
            tuple(KeyPair.make() for _ in range(workers)),
            tuple(KeyPair.make() for _ in range(shards)),
        )

    def of_shard(self, shard: int) -> ShardKeys:
        return ShardKeys(self.shards[shard], self.supervisor.public, tuple(pair.public for pair in self.workers))

    def of_worker(self, rank: int) -> ClientKeys:
        return ClientKeys(self.workers[rank], tuple(pair.public for pair in self.shards))

    def of_supervisor(self) -> ClientKeys:
        return ClientKeys(self.supervisor, tuple(pair.public for pair in self.shards))


class Authenticator:
    """Admits only the keys of a run to the sockets of ``context``, until :meth:`stop` is called.

    ZeroMQ asks about the key of each new connection with ZAP (https://rfc.zeromq.org/spec/27). This class
    answers several times faster than pyzmq's own authenticator, which a flood of unknown keys would keep busy.
    """

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", keys: ShardKeys) -> None:
        self._admitted = {z85.decode(key): key.encode() for key in keys.speakers()}
        self._questions = context.socket(zmq.REP)
        self._questions.linger = 0
        self._questions.bind(ZAP_ENDPOINT)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="authenticator", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _serve(self) -> None:
        with self._questions:
            while not self._stopping.is_set():
                if self._questions.poll(LOOK_UP_EVERY_MS):
                    self._questions.send_multipart(self._answer(self._questions.recv_multipart()))

    def _answer(self, question: list[bytes]) -> list[bytes]:
        """The answer to a ZAP request, ``[version, request id, domain, address, identity, mechanism, key]``."""
        _, request, domain, _, _, mechanism, *key = question
        owner = self._admitted.get(key[0]) if (domain, mechanism) == (DOMAIN.encode(), b"CURVE") and key else None
        if owner is None:
            return [ZAP_VERSION, request, b"400", b"unknown key", b"", b""]
        return [ZAP_VERSION, request, b"200", b"OK", owner, b""]
