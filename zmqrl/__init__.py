"""zmqrl: synchronous distributed actor-critic over ZeroMQ parameter servers with backup workers."""

__version__ = "0.1.0"
