"""What a worker computes: games, networks, rollouts, returns and losses. Knows no sockets."""
