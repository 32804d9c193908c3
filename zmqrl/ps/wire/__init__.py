"""The wire protocol: messages, their framing and coding, sockets and keys."""
