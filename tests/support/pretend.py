"""A device that is not there: Apple's, with its limits, over the host's own arithmetic.

While a `PretendDevice` is entered, tensors may lie on `mps`. It refuses what the real one refuses: float64,
operators that torch has no kernel for there (read from torch's own table of kernels), tensors of two devices
in one operator, and generators of another device. What it cannot tell is whether Apple's kernels are right.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
import torchgen
from torch import Tensor
from torch import __future__ as future
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

__all__ = ["OnDevice", "PretendDevice", "has_kernel"]

ATEN = torch.ops.aten
COPIES = (ATEN._to_copy.default, ATEN.copy_.default)
TO_HOST = (ATEN._local_scalar_dense.default,)
INDEXING = (ATEN.index.Tensor, ATEN.index_put_.default, ATEN.index_put.default, ATEN._index_put_impl_.default)
"""Take indices of the host on every device."""
STAND_INS = {ATEN.scaled_dot_product_attention.default: "_scaled_dot_product_attention_math_for_mps"}
"""What each device does in a way of its own: the kernel that this one takes."""
COMPOSITES = (
    "CompositeExplicitAutograd",
    "CompositeExplicitAutogradNonFunctional",
    "CompositeImplicitAutograd",
)


class Refused(RuntimeError):
    """What the real device would refuse, too."""


class OnDevice(Tensor):
    """Says that it lies on the device; its numbers are in `host`."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor, device: torch.device) -> OnDevice:
        with torch.inference_mode(False):  # Those made in that mode cannot be views of others.
            made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(),
                dtype=host.dtype, layout=host.layout, device=device, requires_grad=False,
            )  # fmt: skip
        made.host = host
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What Python's own methods do by a driver is done by operators; all else goes on to dispatch."""
        with torch._C.DisableTorchFunctionSubclass():
            return BY_OPERATORS.get(func, func)(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Outside the device's world, as when an engine is audited after a test: enter it for this once."""
        with PretendDevice(args[0].device.type if args and isinstance(args[0], OnDevice) else "mps"):
            return func(*args, **(kwargs or {}))


def _contiguous(tensor: Tensor, *, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    return ATEN.contiguous.default(tensor, memory_format=memory_format)  # type: ignore[no-any-return]


def _get_item(tensor: OnDevice, index: Any) -> Tensor:
    found: Tensor = tensor.host[tree_map(_host_of, index)]
    return OnDevice(found, tensor.device)


def _set_item(tensor: OnDevice, index: Any, value: Any) -> None:
    if isinstance(value, Tensor) and not isinstance(value, OnDevice) and value.dim() > 0:
        raise Refused(f"a tensor of the host into one of {tensor.device}")
    tensor.host[tree_map(_host_of, index)] = _host_of(value)


def _host_of(value: Any) -> Any:
    return value.host if isinstance(value, OnDevice) else value


BY_OPERATORS = {
    Tensor.contiguous: _contiguous,
    Tensor.__getitem__: _get_item,
    Tensor.__setitem__: _set_item,
    Tensor.__invert__: ATEN.bitwise_not.default,
    Tensor.copy_: ATEN.copy_.default,
}


class PretendDevice(TorchDispatchMode):
    """The device's world."""

    def __init__(self, kind: str = "mps") -> None:
        super().__init__()
        self.device = torch.device(kind, 0)  # With a number: torch asks a driver for one.
        self.operators: Counter[str] = Counter()
        """How often each ran on the device."""
        self.dtypes: set[torch.dtype] = set()
        """Of tensors there."""
        self.to_host = 0
        """Tensors that were fetched."""

    def __enter__(self) -> Self:
        # `torch.tensor(values, device=...)` then copies where this mode sees it, and a network that is moved
        # gets other weights instead of other contents in those that it has.
        self._before = torch._C._only_lift_cpu_tensors(), future.get_overwrite_module_params_on_conversion()
        torch._C._set_only_lift_cpu_tensors(True)
        future.set_overwrite_module_params_on_conversion(True)
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        torch._C._set_only_lift_cpu_tensors(self._before[0])
        future.set_overwrite_module_params_on_conversion(self._before[1])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = _tensors((args, kwargs))
        inside = [each for each in given if isinstance(each, OnDevice)]
        target = kwargs.get("device")
        named = [each for each in (*args, target) if isinstance(each, torch.device)]
        is_asked = any(each.type == self.device.type for each in named)
        if not inside and not is_asked:
            return func(*args, **kwargs)
        name = STAND_INS.get(func, func.name().removeprefix("aten::"))
        if func not in STAND_INS and _is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        self._check(func, name, given, kwargs)
        leaves = target is not None and not is_asked
        if target is not None:
            kwargs["device"] = "cpu" if is_asked or torch.device(target).type == "cpu" else target
        known = {id(each.host): each for each in inside}
        host_args, host_kwargs = tree_map(_host_of, (args, kwargs))
        result = func(*host_args, **host_kwargs)
        to_host = leaves or func in TO_HOST or (func is COPIES[1] and not isinstance(args[0], OnDevice))
        self.to_host += to_host
        if to_host:
            return args[0] if func is COPIES[1] else result
        return tree_map(lambda x: self._inside(func, x, known) if isinstance(x, Tensor) else x, result)

    def _check(self, func: Any, name: str, given: list[Tensor], kwargs: dict[str, Any]) -> None:
        self.operators[name] += 1
        if not has_kernel(name, self.device.type.upper()):
            raise Refused(f"{name} has no kernel on {self.device}")
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != self.device.type:
            raise Refused(f"{name}: a generator of {generator.device}")
        strangers = [each for each in given if not isinstance(each, OnDevice) and each.dim() > 0]
        if strangers and func not in (*COPIES, *INDEXING):
            raise Refused(f"{name}: tensors of {self.device} and of the host")

    def _inside(self, func: Any, host: Tensor, known: dict[int, OnDevice]) -> OnDevice:
        if host.dtype is torch.float64:
            raise Refused(f"{func}: float64 on {self.device}")
        self.dtypes.add(host.dtype)
        if (before := known.get(id(host))) is not None:  # In place.
            assert before.shape == host.shape, f"{func} has changed a shape in place"
            return before
        return OnDevice(host, self.device)


def has_kernel(name: str, key: str) -> bool:
    """Whether torch's table has a kernel of the operator for the device, or makes it of those that have."""
    keys, delegate = _table()[name]
    if not keys and not delegate:
        return True  # Composite: it never comes here by itself.
    return (
        key in keys or bool(keys.intersection(COMPOSITES)) or (bool(delegate) and has_kernel(delegate, key))
    )


@cache
def _table() -> dict[str, tuple[frozenset[str], str]]:
    """Of every native operator the devices with kernels, and the one that it hands its work to."""
    text = (Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml").read_text("utf-8")
    found = {}
    for block in text.split("\n- func: ")[1:]:
        name = block.partition("(")[0]
        dispatch = re.search(r"\n  dispatch:\n((?:    .+\n?)+)", block)
        lines = dispatch.group(1).splitlines() if dispatch else []
        keys = {key.strip() for line in lines for key in line.split("#")[0].rpartition(":")[0].split(",")}
        delegate = re.search(r"\n  structured_delegate: (\S+)", block)
        found[name] = (frozenset(keys - {""}), delegate.group(1) if delegate else "")
    return found


def _is_composite(func: Any) -> bool:
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key))


def _tensors(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map(lambda x: found.append(x) if isinstance(x, Tensor) else None, tree)
    return found
