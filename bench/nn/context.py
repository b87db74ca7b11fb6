"""What networks are given beside the state, by the name of a task's context."""

from __future__ import annotations

from bench.nn.chain import CHAIN, ChainEmbedding
from bench.nn.graph import GRAPH, GraphEmbedding


def embedding_of(
    context: str | None, atom_width: int, pair_width: int, pair_std: float = 1.0
) -> GraphEmbedding | ChainEmbedding | None:
    """The embedding of atoms and pairs for a context; None without one.

    Args:
        pair_std: standard deviation of initial weights of pairs; 0 for biases that start without effect.
    Raises:
        ValueError: another context.
    """
    if context is None:
        return None
    made = {GRAPH: GraphEmbedding, CHAIN: ChainEmbedding}
    if context not in made:
        raise ValueError(f"the context is {context!r}, expected {' or '.join(made)}")
    return made[context](atom_width, pair_width, pair_std)
