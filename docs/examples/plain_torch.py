"""The parameter server on its own: two processes fit a sine with a plain torch model.

    python docs/examples/plain_torch.py

Each worker computes the gradient of its own batch on the weights that it pulled. The shards average the two gradients
and take an optimizer step. A batch depends only on the rank and the version, so every run gives the same result.
"""

import multiprocessing

import torch
from torch import nn

from zmqrl.ps import Cluster, Connection, FlatParameters, OptimizerConfig, standalone_shards

UPDATES = 500
WORKERS = 2


def make_model() -> nn.Module:
    """Any torch module works."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 1))


def work(cluster: Cluster, rank: int) -> None:
    """One worker: pull, gradient, push."""
    torch.set_num_threads(1)  # otherwise the threads of all workers wait for the same cores
    model = make_model()
    parameters = FlatParameters(model)
    with Connection(cluster, rank) as connection:
        weights = connection.pull()
        while weights is not None and weights.version < UPDATES:
            parameters.load(weights.vector)
            gradient = connection.gradient_buffer()
            with parameters.gradient_in(gradient):
                batch = torch.Generator().manual_seed(1000 * weights.version + rank)
                x = torch.rand(64, 1, generator=batch) * 6 - 3
                loss = (model(x) - x.sin()).square().mean()
                loss.backward()
            connection.push(weights, gradient)
            if rank == 0 and weights.version % 100 == 0:
                print(f"version {weights.version}: loss {loss.item():.4f}")
            weights = connection.pull(above=weights.version)


def main() -> None:
    """Start two shards and two workers."""
    parameters = FlatParameters(make_model())
    optimizer = OptimizerConfig(name="adam", learning_rate=1e-2)
    with standalone_shards(parameters.layout(2), parameters.vector(), optimizer=optimizer, workers=WORKERS) as shards:
        spawn = multiprocessing.get_context("spawn")  # never fork a process that has a ZeroMQ context
        workers = [spawn.Process(target=work, args=(shards.cluster, rank)) for rank in range(WORKERS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


if __name__ == "__main__":
    main()
