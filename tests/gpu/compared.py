"""Runs every raw op of pyfold twice, by the CPU kernels and by the CUDA kernels on the simulated GPU, and compares bits."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from simulator import FOLDER, Fault
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

torch.ops.load_library(str(FOLDER / "libpyfold_gpu_test.so"))
#: From here on every tensor is memory of the device, and nothing else is.
ctypes.CDLL(str(FOLDER / "libpyfold_gpu_test.so")).pyfold_gpu_use_allocator()

#: Sums are made in another order on each device; the largest difference relative to the sum of absolute terms.
SUMS = {"denoising_loss", "denoising_residual_dot", "fold_angle_grad"}
SUM_TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}


def on_device(values: list[Any]) -> list[Any]:
    """The tensors in memory of their own, with the strides, the alignment and the sharing of memory that they have."""
    storages: dict[int, torch.UntypedStorage] = {}
    copies = []
    for value in values:
        if not isinstance(value, torch.Tensor):
            copies.append(value)
            continue
        storage = value.untyped_storage()
        if storage._cdata not in storages:
            # Of torch.empty: a storage's own clone is not made by the allocator of tensors.
            storages[storage._cdata] = torch.empty(storage.nbytes(), dtype=torch.uint8).untyped_storage().copy_(storage)
        copy = storages[storage._cdata]
        empty = torch.empty(0, dtype=value.dtype)
        copies.append(empty.set_(copy, value.storage_offset(), value.shape, value.stride()))
    return copies


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All that the tensor's storage holds, between and beside its elements too."""
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    return torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage(), 0, (count,), (1,))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit by bit, but for what a NaN holds."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return bool(((a.view(integer) == b.view(integer)) | (a.isnan() & b.isnan())).all())


class Compared(TorchDispatchMode):
    """Within it, a raw op whose devices differ raises AssertionError, and one whose kernel does wrong raises Fault. So does
    the end of it where nothing was compared, unless ``may_be_none``."""

    calls = 0  #: of all

    def __init__(self, may_be_none: bool = False) -> None:
        super().__init__()
        self._before, self._may_be_none = Compared.calls, may_be_none

    def __exit__(self, kind: Any, *error: Any) -> None:
        super().__exit__(kind, *error)
        assert kind is not None or self._may_be_none or Compared.calls > self._before, "nothing was compared"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "pyfold":
            return func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("pyfold::")
        given, tree = tree_flatten((args, kwargs or {}))
        tensors = [v for v in given if isinstance(v, torch.Tensor)]
        if any(type(v) not in (torch.Tensor, torch.nn.Parameter) or not v.is_cpu for v in tensors):
            return func(*args, **(kwargs or {}))
        with torch.no_grad():
            device = on_device(given)
            device_args, device_kwargs = tree_unflatten(device, tree)
            expected = func(*args, **(kwargs or {}))
            try:
                actual = getattr(torch.ops.pyfold_gpu_test, name)(*device_args, **device_kwargs)
            except RuntimeError as error:
                raise Fault(f"{name}: {str(error).splitlines()[0]}") from error
            Compared.calls += 1
            results = [(e, a, False) for e, a in zip(tree_flatten(expected)[0], tree_flatten(actual)[0], strict=True)]
            memory = [(e, a, True) for e, a in zip(given, device, strict=True)]
            for e, a, shared in results + memory:
                if isinstance(e, torch.Tensor):
                    self.compare(name, e, a, shared)
        return expected

    @staticmethod
    def compare(name: str, expected: torch.Tensor, actual: torch.Tensor, shared: bool) -> None:
        assert expected.shape == actual.shape and expected.dtype == actual.dtype, name
        assert expected.stride() == actual.stride() or expected.numel() == 0, f"{name}: the strides differ"
        if name in SUMS and not shared:
            tolerance = SUM_TOLERANCE[expected.dtype]
            torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
            return
        e, a = (whole(expected), whole(actual)) if shared else (expected.contiguous(), actual.contiguous())
        if not same_bits(e, a):
            wrong = int(((e != a) & ~(e != e) & ~(a != a)).sum())
            raise AssertionError(f"{name}: {wrong} of {e.numel()} values differ, shape {tuple(expected.shape)}")


class OnDevice(TorchDispatchMode):
    """Within it raw ops run on the simulated GPU alone; their tensors live as long as this does, as a graph's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self._kept: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "pyfold":
            self.calls += 1
            func = getattr(torch.ops.pyfold_gpu_test, func._schema.name.removeprefix("pyfold::"))
        result = func(*args, **(kwargs or {}))
        self._kept += [args, kwargs, result]
        return result
