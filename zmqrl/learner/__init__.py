"""The computation of a worker: games, networks, rollouts, returns and losses. It uses no sockets."""
