"""What goes over the wire: messages, their framing and coding, sockets and keys."""
