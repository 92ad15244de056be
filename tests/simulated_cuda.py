"""A card that is not there: tensors that say cuda and hold their values on the CPU.

An operation that mixes them with tensors of the CPU raises, as on a card. Unlike fake tensors they have values, so what
reads one goes on. Backward passes are not simulated: autograd asks the driver for a stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from t2v_turbo.core import pipeline
from t2v_turbo.core.checkpoints import mapped

aten = torch.ops.aten
CARD = torch.device("cuda", 0)
# What may take tensors of both: copies between devices, and indices, which may lie on the CPU.
MIXING = {aten._to_copy, aten.copy_, aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_}


class OnCard(torch.Tensor):
    """A tensor of the simulated card; ``values`` are on the CPU."""

    @staticmethod
    def __new__(cls, values: torch.Tensor):
        sizes = {"strides": values.stride(), "storage_offset": values.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype, device=CARD, **sizes)

    def __init__(self, values: torch.Tensor):
        self.values = values

    def __repr__(self) -> str:
        return f"OnCard({self.values})"

    def tolist(self) -> list:
        return self.values.tolist()

    def numpy(self):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class OnCPU(TorchDispatchMode):
    """Does what is asked of the card on the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # Under inference mode operations arrive whole, which are made of others.
        if func._can_decompose():
            with self:
                found = func.decompose(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        return run(func, args, kwargs or {})


@contextmanager
def simulated_card() -> Iterator[None]:
    """Makes ``device="cuda"`` work while the block runs."""
    with FakeTensorMode(), OnCPU():  # under the first torch does not look for a driver
        yield


def run(func, args, kwargs):
    """Do an operation on the CPU; its result is on the card if it was asked for there, or its inputs are."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    on_card = [tensor for tensor in tensors if isinstance(tensor, OnCard)]
    # As on a card, a number in a tensor of the CPU goes along with any.
    others = [tensor for tensor in tensors if not isinstance(tensor, OnCard) and tensor.ndim]
    if on_card and others and func.overloadpacket not in MIXING:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found cuda:0 and cpu")
    asked = kwargs.get("device")
    to_card = bool(on_card) if asked is None else torch.device(asked).type == "cuda"
    if func.overloadpacket is aten.copy_:
        to_card = isinstance(args[0], OnCard)
    if asked is not None and torch.device(asked).type == "cuda":
        kwargs = kwargs | {"device": torch.device("cpu")}
    wrappers = {id(tensor.values): tensor for tensor in on_card}
    with unset_fake_temporarily():
        found = func(*tree_map(plain, args), **tree_map(plain, kwargs))
    if not to_card:
        return found

    def wrapped(leaf):
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return wrappers[id(leaf)] if id(leaf) in wrappers else OnCard(leaf)

    return tree_map(wrapped, found)


def can_simulate() -> bool:
    """torch 2.6 built for CUDA asks the driver even for copies that are not its own."""
    try:
        with simulated_card():
            torch.ones(2).to("cuda")
    except RuntimeError:
        return torch.__version__ >= (2, 7)  # shall fail in the tests
    return True


def plain(leaf):
    return leaf.values if isinstance(leaf, OnCard) else leaf


def on_card(path) -> torch.Tensor:
    """What a function of a device computes on the card: the same as on the CPU, but for the order of sums in attention.

    Gradients are zeros there and here.
    """

    def no_gradients(outputs, inputs, *_, **__):
        several = isinstance(inputs, (tuple, list))
        return tuple(torch.zeros_like(one) for one in (inputs if several else [inputs]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd, "grad", no_gradients)
        patch.setattr(pipeline, "free_memory", lambda device: 1 << 40)
        # The simulation is one thread's.
        patch.setattr(mapped, "ThreadPoolExecutor", lambda *_: nullcontext(SimpleNamespace(map=map)))
        # A parameter of the CPU cannot become one of the card in place.
        patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        with simulated_card(), torch.no_grad():
            found = path("cuda")
        expected = path("cpu")
    assert (plain(found) - expected).norm() <= 1e-3 * expected.norm()
    return found


needs_simulated_card = pytest.mark.skipif(not can_simulate(), reason="this torch asks the driver for every copy")
