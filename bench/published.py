"""Published weights under their published names, as arrays of this code base's modules.

EDM (ehoogeboom/e3_diffusion_for_molecules) and SymDiff (leozhangML/SymDiff). Layers that the published networks hold
but never train are left out here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_MESSAGE = {  # what EGNN and GDM share
    "edge_mlp.0": "message_in",
    "edge_mlp.2": "message_out",
    "att_mlp.0": "attention",
    "node_mlp.0": "node_in",
    "node_mlp.2": "node_out",
}
_EGNN = {
    **{f"gcl_0.{published}": ours for published, ours in _MESSAGE.items()},
    "gcl_equiv.coord_mlp.0": "coordinate_in",
    "gcl_equiv.coord_mlp.2": "coordinate_mid",
    "gcl_equiv.coord_mlp.4": "coordinate_out",
}
_TRUNK = {
    "t_embedder.mlp.0": "time.inner",
    "t_embedder.mlp.2": "time.outer",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.out",
    "mlp.fc1": "mlp.inner",
    "mlp.fc2": "mlp.outer",
    "adaLN_modulation.1": "modulation",
}
_DIT = {
    "gaussian_embedder.means.weight": "pair_embedding.mean",
    "gaussian_embedder.stds.weight": "pair_embedding.raw_scale",
    "pos_embedder": "pair_embedding.linear",
    "xh_embedder": "atom_embedding",
    "final_layer.linear": "head",
    "final_layer.adaLN_modulation.1": "modulation",
}


def egnn_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of `bench.backbones.egnn.EGNN` from the state dict of EDM's `EGNN_dynamics_QM9`.

    Raises:
        KeyError: a name that the published network does not have.
    """
    state = {}
    for name, value in published.items():
        name = name.removeprefix("egnn.")
        if name.startswith("embedding"):
            state[name.replace("embedding_out", "readout")] = value
            continue
        match = re.fullmatch(r"e_block_(\d+)\.(.+)\.(weight|bias)", name)
        if match is None or match[2] not in _EGNN:
            raise KeyError(f"{name!r} is no parameter of the published EGNN")
        state[f"blocks.{match[1]}.{_EGNN[match[2]]}.{match[3]}"] = value
    return state


def gdm_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of `bench.backbones.gdm.GDM` from the state dict of EDM's `EGNN_dynamics_QM9` in mode 'gnn_dynamics'.

    Raises:
        KeyError: a name that the published network does not have.
    """
    state = {}
    for name, value in published.items():
        match = re.fullmatch(r"gnn\.(?:(embedding|embedding_out)|gcl_(\d+)\.(.+))\.(weight|bias)", name)
        if match is None or (match[3] and match[3] not in _MESSAGE):
            raise KeyError(f"{name!r} is no parameter of the published GNN")
        outer = "readout" if match[1] == "embedding_out" else match[1]
        state[f"{outer or f'blocks.{match[2]}.{_MESSAGE[match[3]]}'}.{match[4]}"] = value
    return state


def dit_state(published: Mapping[str, Tensor], trunk: str = "model") -> dict[str, Tensor]:
    """State of `bench.backbones.dit.DiT` from the state dict of SymDiff's `DiTGaussian_dynamics`, or, with
    trunk='k', of the kernel network inside `DiT_DitGaussian_dynamics`."""
    return transformer_state(published, _DIT, trunk)


def transformer_state(
    published: Mapping[str, Tensor], names: Mapping[str, str | None], trunk: str
) -> dict[str, Tensor]:
    """State of a module that holds a `Trunk`, from a published state dict that may hold other networks too.

    Args:
        names: published layer or parameter -> ours, for what lies outside the blocks; None where the published code
            holds a layer and never trains it.
        trunk: published prefix of the blocks; names in `names` are looked up with this prefix removed.
    Raises:
        KeyError: a name under the prefix that the published network does not have.
    """
    state = {}
    for name, value in published.items():
        inner = name.removeprefix(f"{trunk}.")
        stem, _, kind = inner.rpartition(".")
        if (whole := names.get(inner)) is not None:
            state[whole] = value.reshape(-1)
        elif stem in names:
            if (layer := names[stem]) is not None:
                state[f"{layer}.{kind}"] = value
        elif inner != name:
            state["trunk." + _trunk_name(inner)] = value
    return state


def _trunk_name(name: str) -> str:
    for published, ours in _TRUNK.items():
        if published in name:
            return name.replace(published, ours)
    raise KeyError(f"{name!r} is no parameter of the published transformer")
