"""SO(3) x Aut: rotations, and permutations of atoms that a molecule's bond graph does not tell apart.

A network that permutes with atoms and sees the graph takes no notice of an automorphism pi: the graph stays, positions
and prediction are permuted alike, and so is their error. The law of the data may therefore be taken to be invariant
under Aut, whatever order the file has its atoms in, and `haar` draws rotations alone: permuting an example would change
no loss. Only averages over the orbit differ. With g = (R, pi), (g x)_n = R x_pi(n), the posterior given z_t is

    p(R, pi | z_t, x0) ~ exp(tr(F_pi^T R)),   F_pi = (alpha / sigma^2) sum_n z_n x0_pi(n)^T,

a mixture of matrix-Fisher distributions, with weights that are their normalisers. It holds for isotropic noise, under
which |g x0| = |x0|, and under the harmonic prior, whose precision is a function of the graph.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bench.geometry.groups import SO3
from bench.geometry.noised import Noised
from bench.geometry.state import State
from bench.streams import draw


class RotationsAndAutomorphisms(SO3):
    """SO(3) x Aut, elements drawn being those of SO(3); the automorphisms are those that a state's context lists.

    The context has `automorphisms` [A, G], permutations as atoms of the batch, the identity first, and
    `n_automorphisms` [B], how many columns are of a molecule (`bench.structures.graphs.bond_graphs`).
    """

    @staticmethod
    def listed(state: State) -> tuple[Int[Tensor, "A G"], Int[Tensor, "B"]]:
        """The permutations of a batch and their number in each molecule.

        Raises:
            ValueError: the context lists none.
        """
        if state.context is None or "automorphisms" not in state.context:
            raise ValueError(
                "group SO(3) x Aut needs the automorphisms of bond graphs in the context, and this task gives none; "
                "choose group SO3"
            )
        return state.context["automorphisms"], state.context["n_automorphisms"]

    def exchanges(self, state: State, n: int, rng: torch.Generator, include_identity: bool) -> Int[Tensor, "A P"]:
        """n uniform draws from each molecule's automorphisms; the first is the identity if `include_identity`."""
        table, counts = self.listed(state)
        u = draw(torch.rand, (len(state), n), rng, dtype=torch.float64)
        column = (u * counts[:, None]).long()
        if include_identity:
            column[:, 0] = 0
        return table.gather(1, column.index_select(0, state.layout.molecule))

    @torch.no_grad()
    def log_evidence(self, noised: Noised) -> Float[Tensor, "B"]:
        F, log_weights = self._mixture(noised)
        here = noised.spaces.log_likelihood(noised.z_t, noised.clean, noised.level).double()
        counts = self.listed(noised.clean)[1].double()
        return here - F[:, 0].diagonal(dim1=1, dim2=2).sum(1) + log_weights.logsumexp(1) - counts.log()

    @torch.no_grad()
    def posterior_mean(self, noised: Noised) -> State:
        """Expected noise equivalent to E[x0 | z_t, orbit] = sum_pi w_pi M_pi x0_pi."""
        F, log_weights = self._mixture(noised)
        w = log_weights.softmax(1)
        M = w[:, :, None, None] * self.mean(F.flatten(0, 1)).view_as(F)
        clean = noised.clean
        x = clean.parts[self.part]
        permuted = x[self.listed(clean)[0]].double()
        mean = torch.einsum("agij,agj->ai", clean.per_atom(M), permuted)
        return noised.noise_of(clean.replace(**{self.part: mean.to(x.dtype)}))

    def _mixture(self, noised: Noised) -> tuple[Float[Tensor, "B G 3 3"], Float[Tensor, "B G"]]:
        """F_pi and the logarithm of its weight, minus infinity for columns beyond a molecule's group."""
        table, counts = self.listed(noised.clean)
        F = self.moment(noised.clean.parts[self.part][table], noised)
        log_weights = self.log_normaliser(F.flatten(0, 1)).view(F.shape[:2])
        return F, log_weights.masked_fill(~_filled(table, counts), float("-inf"))


def _filled(table: Int[Tensor, "A G"], counts: Int[Tensor, "B"]) -> Bool[Tensor, "B G"]:
    return torch.arange(table.shape[1], device=counts.device) < counts[:, None]
