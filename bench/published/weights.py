"""Maps published weights, under their published names, to this code's modules.

EDM (ehoogeboom/e3_diffusion_for_molecules) and SymDiff (leozhangML/SymDiff). A state dict is recognised by the first
parts of its names; sizes follow from shapes, and what shapes do not determine (attention heads) from the published size
that they fit, or is given. Layers that the published networks hold but never train are left out.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.records.inputs import one_line, read_arrays, size_of, truncate
from bench.registry import Registry, backbones, methods
from bench.symmetry.published import PublishedError, PublishedWeights, StateDict

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
# keys of the public codes' configurations that are options of a backbone
CONFIG_NAMES = {
    "egnn": {"hidden_nf": "width", "n_layers": "depth"},
    "dit": {
        "hidden_size": "width",
        "depth": "depth",
        "num_heads": "n_heads",
        "mlp_ratio": "mlp_ratio",
        "xh_hidden_size": "embedding_width",
    },
}

ELEMENTS = (1, 6, 7, 8, 9)  # of QM9, which all published checkpoints know


# ---------------------------------------------------------------------- names


def egnn_names(published: StateDict) -> dict[str, str]:
    """Published name -> name in `bench.backbones.egnn.EGNN`, of the state dict of EDM's `EGNN_dynamics_QM9`.

    Raises:
        PublishedError: a name that the published network does not have.
    """
    names = {}
    for name in published:
        inner = name.removeprefix("egnn.")
        if match := re.fullmatch(r"(embedding|embedding_out)\.(weight|bias)", inner):
            names[name] = f"{'readout' if match[1] == 'embedding_out' else 'embedding'}.{match[2]}"
            continue
        match = re.fullmatch(r"e_block_(\d+)\.(.+)\.(weight|bias)", inner)
        if match is None or match[2] not in _EGNN:
            raise PublishedError(f"{name!r} is no parameter of the published EGNN")
        names[name] = f"blocks.{match[1]}.{_EGNN[match[2]]}.{match[3]}"
    return names


def gdm_names(published: StateDict) -> dict[str, str]:
    """Published name -> name in `bench.backbones.gdm.GDM`, of EDM's `EGNN_dynamics_QM9` in mode 'gnn_dynamics'.

    Raises:
        PublishedError: a name that the published network does not have.
    """
    names = {}
    for name in published:
        match = re.fullmatch(r"gnn\.(?:(embedding|embedding_out)|gcl_(\d+)\.(.+))\.(weight|bias)", name)
        if match is None or (match[3] and match[3] not in _MESSAGE):
            raise PublishedError(f"{name!r} is no parameter of the published GNN")
        outer = "readout" if match[1] == "embedding_out" else match[1]
        names[name] = f"{outer or f'blocks.{match[2]}.{_MESSAGE[match[3]]}'}.{match[4]}"
    return names


def dit_names(published: StateDict, trunk: str = "model") -> dict[str, str]:
    """Published name -> name in `bench.backbones.dit.DiT`, of the state dict of SymDiff's `DiTGaussian_dynamics`, or,
    with trunk='k', of the kernel network inside `DiT_DitGaussian_dynamics`."""
    return transformer_names(published, _DIT, trunk)


def transformer_names(published: StateDict, names: Mapping[str, str | None], trunk: str) -> dict[str, str]:
    """Published name -> name in a module that holds a `Trunk`, of a state dict that may hold other networks too.

    Args:
        names: published layer or parameter -> ours, for what lies outside the blocks; None for a layer that the
            published code never trains.
        trunk: published prefix of the blocks; names in `names` are looked up with this prefix removed.
    Raises:
        PublishedError: a name under the prefix that the published network does not have.
    """
    found = {}
    for name in published:
        inner = name.removeprefix(f"{trunk}.")
        stem, _, kind = inner.rpartition(".")
        if (whole := names.get(inner)) is not None:
            found[name] = whole
        elif stem in names and kind in ("weight", "bias"):
            if (layer := names[stem]) is not None:
                found[name] = f"{layer}.{kind}"
        elif inner != name:
            found[name] = "trunk." + _trunk_name(inner, name)
    return found


def _trunk_name(inner: str, name: str) -> str:
    for published, ours in _TRUNK.items():
        if re.fullmatch(rf"(blocks\.\d+\.)?{re.escape(published)}\.(weight|bias)", inner):
            return inner.replace(published, ours)
    raise PublishedError(f"{name!r} is no parameter of the published transformer")


# ---------------------------------------------------------------------- recognising a state dict


@dataclass(frozen=True)
class Reading:
    """The interpretation of a published state dict.

    Attributes:
        weights: the public code and its layout.
        method, backbone: names and options, as in a run's configuration.
        n_features: F of the network.
        backbone_names, own_names: published name -> ours, of the backbone and of the method's own network.
        unused: names of arrays that the published code never trains.
    """

    weights: PublishedWeights
    method: dict[str, Any]
    backbone: dict[str, Any]
    n_features: int
    backbone_names: dict[str, str]
    own_names: dict[str, str]
    unused: list[str]

    def load(self, published: StateDict, backbone: nn.Module, method: nn.Module) -> None:
        """Copy all weights into modules built from `backbone` and `method`.

        Raises:
            PublishedError: an array is missing, has another shape, or is not finite.
        """
        load_named(backbone, self.backbone_names, published, f"backbone {self.backbone['name']!r}")
        if self.weights.own:
            own = getattr(method, self.weights.own.module)
            load_named(own, self.own_names, published, f"the {self.weights.own.module} of {self.method['name']!r}")
        elif {id(p) for p in method.parameters()} - {id(p) for p in backbone.parameters()}:
            raise PublishedError(
                f"method {self.method['name']!r} has weights of its own; {self.weights.network} has none"
            )


def layouts() -> dict[str, PublishedWeights]:
    """Name of a method -> its published weights, as declared by the plug-in itself (not inherited)."""
    declared = {name: vars(methods[name].build).get("published") for name in methods}
    return {name: weights for name, weights in declared.items() if weights is not None}


def recognise(published: StateDict) -> tuple[str, PublishedWeights]:
    """The method to whose published code the names belong.

    Raises:
        PublishedError: the names are of no known network, or of a known one and something else.
    """
    found = {name.split(".")[0] for name in published}
    fitting = {name: w for name, w in layouts().items() if w.prefixes <= found}
    if not fitting:
        known = "; ".join(f"{w.network}: {', '.join(sorted(w.prefixes))}" for w in layouts().values())
        raise PublishedError(f"names begin with {', '.join(sorted(found)[:8]) or 'nothing'}; known are {known}")
    name, weights = max(fitting.items(), key=lambda item: len(item[1].prefixes))
    if strange := sorted(n for n in published if n.split(".")[0] not in weights.prefixes):
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise PublishedError(f"{', '.join(map(repr, strange[:3]))}{more}: no parameter of {weights.network}")
    return name, weights


def understand(published: StateDict, method: Mapping[str, Any], backbone: Mapping[str, Any]) -> Reading:
    """Determine the network that a state dict holds, and its sizes.

    Args:
        method, backbone: names and options as far as they are given. Weights of a backbone alone fit any method without
            weights of its own, weights of a method any with the same options.
    Raises:
        PublishedError: names of no single known network; options that the shapes contradict, or that are neither given
            nor determined by shapes.
    """
    name, weights = recognise(published)
    if weights.backbone == "egnn":
        n_features, told, names = *_egnn_sizes(published), egnn_names(published)
    else:
        n_features, told, names = *_dit_sizes(published, weights.trunk), dit_names(published, weights.trunk)
    untold = ("n_heads",) if weights.backbone == "dit" else ()
    page = {"name": weights.backbone, **backbone}
    if page["name"] != weights.backbone:
        raise PublishedError(f"backbone {page['name']!r} was given, but the names are those of {weights.backbone!r}")
    page = _options(backbones, told, untold, page)

    own, own_names, method_page = weights.own, {}, {"name": name, **method}
    if own:
        own_names = transformer_names(published, own.names, own.trunk)
        if methods[method_page["name"]].config is not methods[name].config:
            raise PublishedError(f"method {method_page['name']!r} was given, but the names are those of {name!r}")
        method_page = _options(methods, own.sizes(published), own.untold, method_page)
    never_trained = {n for n in published if n.startswith(f"{own.trunk}.")} - set(own_names) if own else set()
    if lost := sorted(set(published) - set(names) - set(own_names) - never_trained):
        raise PublishedError(f"{lost[0]!r} is no parameter of {weights.network}")
    return Reading(weights, method_page, page, n_features, names, own_names, sorted(never_trained))


def _egnn_sizes(published: StateDict) -> tuple[int, dict[str, int]]:
    width, inputs = (published.size("egnn.embedding.weight", dim) for dim in (0, 1))
    return inputs - 1, {"width": width, "depth": published.n_blocks("egnn.e_block_")}  # the last input is time


def _dit_sizes(published: StateDict, trunk: str) -> tuple[int, dict[str, int]]:
    width = published.size(f"{trunk}.t_embedder.mlp.0.weight", 0)
    embedding, inputs = (published.size("xh_embedder.weight", dim) for dim in (0, 1))
    return inputs - 3, {
        "width": width,
        "depth": published.n_blocks(f"{trunk}.blocks."),
        "embedding_width": embedding,
        "mlp_ratio": published.size(f"{trunk}.blocks.0.mlp.fc1.weight", 0) // width,
    }


def _options(
    registry: Registry, told: Mapping[str, int], untold: tuple[str, ...], page: Mapping[str, Any]
) -> dict[str, Any]:
    """A plug-in's name and options: from shapes, as given, and for the rest from a published size that fits both.

    Other named sizes are our own, and say nothing about a published network of the same width.
    """
    name, given = page["name"], {key: value for key, value in page.items() if key != "name"}
    for key, value in told.items():
        if given.get(key, value) != value:
            raise PublishedError(f"{registry.kind} {name!r}: {key} is given as {given[key]!r}, the arrays have {value}")
    sizes = {k: v for k, v in getattr(registry[name].build, "sizes", {}).items() if k.startswith("published")}
    known = {**told, **given}
    for size, options in sizes.items():
        if all(known.get(key, value) == value for key, value in options.items()):
            return {"name": name, "size": size, **options, **known}
    if missing := [key for key in untold if key not in given]:
        widths = ", ".join(f"{key} {value}" for key, value in told.items())
        raise PublishedError(
            f"{registry.kind} {name!r}: no shape tells {' or '.join(missing)}, and {widths} is no published size; "
            f"give {', '.join(missing)}"
        )
    return {"name": name, **known}


def load_named(module: nn.Module, names: Mapping[str, str], published: StateDict, what: str) -> None:
    """Copy published arrays into a module, in place.

    Args:
        names: published name -> ours; every parameter of the module must be among them.
        what: the module, for messages.
    Raises:
        PublishedError: a parameter has no array, an array no parameter, shapes differ, or values are not finite.
    """
    places = module.state_dict()
    for name, ours in names.items():
        if ours not in places:
            raise PublishedError(f"array {name!r} has no place in {what}")
        value, place = published[name], places.pop(ours)
        if place.ndim == 1 and value.ndim == 2 and len(value) == 1:  # published as an embedding with a single row
            value = value[0]
        if value.shape != place.shape:
            raise PublishedError(
                f"array {name!r} has shape {tuple(value.shape)}, expected {tuple(place.shape)} for {what}"
            )
        if not value.isfinite().all():
            raise PublishedError(f"array {name!r} has values that are not finite")
        place.copy_(value)
    if places:
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        raise PublishedError(f"no array for {', '.join(sorted(places)[:3])}{more} of {what}")


# ---------------------------------------------------------------------- files


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint.

    Attributes:
        weights: the network's arrays, without the prefix `dynamics.`.
        gamma: table of the noise schedule [T + 1], where the file has one.
        ignored: names of further arrays that are known and irrelevant.
    """

    weights: StateDict
    gamma: np.ndarray | None
    ignored: list[str]


def read_checkpoint(path: Path) -> Checkpoint:
    """The state dict of a published `EnVariationalDiffusion` or of its network alone.

    The file is of torch.save (whatever its suffix; the public codes write `generative_model_ema.npy`), safetensors, or
    npz (names bare or after `param:`). Only tensors are unpickled: `torch.load(weights_only=True)`.

    Raises:
        PublishedError: the file is unreadable, or not a state dict.
    """
    arrays = _read_arrays(path)
    gamma = arrays.pop("gamma.gamma", None)
    if learned := [name for name in arrays if name.startswith("gamma.")]:
        raise PublishedError(f"{path}: {learned[0]!r} is of a learned noise schedule, which is not supported")
    ignored = [name for name in ("buffer",) if arrays.pop(name, None) is not None]
    weights = StateDict({name.removeprefix("dynamics."): value for name, value in arrays.items()})
    if len(weights) < len(arrays):
        raise PublishedError(f"{path}: some names occur with and without the prefix 'dynamics.'")
    return Checkpoint(weights, None if gamma is None else gamma.double().numpy(), ignored)


def _read_arrays(path: Path) -> dict[str, Tensor]:
    try:
        n_bytes = size_of(path)
        with path.open("rb") as file:
            head = file.read(9)
        if not head:
            raise PublishedError(f"{path}: is empty")
        if head[8:] == b"{":
            content: Any = load_file(path)
        elif head[:2] == b"PK" and _is_npz(path, n_bytes):
            arrays = read_arrays(path)
            named = {name.removeprefix("param:"): v for name, v in arrays.items() if name.startswith("param:")}
            content = {name: torch.from_numpy(value) for name, value in (named or arrays).items()}
        elif head[:6] == b"\x93NUMPY":
            raise PublishedError(f"{path}: is a numpy array, expected a state dict (torch.save, safetensors or npz)")
        else:
            with warnings.catch_warnings():  # about a pickle that is then refused
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
    except PublishedError:
        raise
    except pickle.UnpicklingError as error:
        strange = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it holds {truncate(strange[1])}" if strange else "it is no file of torch.save, or damaged"
        raise PublishedError(f"{path}: {why}; a state dict of tensors alone is read, and nothing is executed") from None
    except OSError as error:
        raise PublishedError(f"{path}: {one_line(error)}") from None
    except Exception as error:  # on a damaged file, torch may raise anything
        raise PublishedError(f"{path}: cut short or damaged ({one_line(error)})") from None
    if not isinstance(content, dict) or not all(isinstance(k, str) and _is_plain(v) for k, v in content.items()):
        raise PublishedError(f"{path}: holds {type(content).__name__}, expected a state dict: names -> float arrays")
    if not content:
        raise PublishedError(f"{path}: holds no arrays")
    return {name: value.detach() for name, value in content.items()}


def _is_npz(path: Path, n_bytes: int) -> bool:
    """Whether a zip file is numpy's; refuses one of torch's that unpacks to more bytes than it has."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.filename.endswith(".npy") for entry in entries):
        return True
    if sum(entry.file_size for entry in entries) > n_bytes:
        raise PublishedError(f"{path}: unpacks to more than its {n_bytes} bytes, which no file of torch.save does")
    return False


def _is_plain(value: Any) -> bool:
    """Real numbers on the CPU, each element stored: with zero strides, a shape can claim more than there is."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and value.is_floating_point()
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )
