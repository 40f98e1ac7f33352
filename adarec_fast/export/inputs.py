"""What every exported program does with its inputs first: answer rightly, or refuse.

A program is called by code that knows neither this package nor the manifest by heart. Whatever
it is given, lists that are wrong must not come out of it, and the same in every format:

=============================  ==========================================================
a view, any strides            answered
padding on the left            answered
ids that are not int64         refused: the graph names the dtype, runtimes hold to it
an id outside 0..num_items     refused, in the history and among the seen ones
a row with no item             refused
a 0 between two items          refused
more users, a longer history   refused
another number of seen rows    refused
=============================  ==========================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Guarded(nn.Module):
    """A graph behind a check of its inputs, both in ATen's own ops, so that the check goes
    wherever the graph does.

    None of the formats can raise an error of its own. Of a row that must be refused the answer is
    looked up at a place that it does not have, which each of them refuses; on a GPU that ends the
    process's use of it.

    Args:
        graph: from item ids, padded on the right, and perhaps seen ones.
        num_items: ids are 1..num_items, 0 pads.
        longest: most items of a history.
        max_batch: most users.
    """

    def __init__(self, graph: nn.Module, *, num_items: int, longest: int, max_batch: int) -> None:
        super().__init__()
        # `graph` is a name of torch.fx.
        self.ranker, self.num_items = graph, num_items
        self.longest, self.max_batch = longest, max_batch

    def forward(
        self, item_ids: Tensor, seen: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """The graph's answer to int64 ``[B, L]`` and, if it takes that, ``[B, S]``."""
        given = item_ids
        _assert_int64(item_ids)
        if seen is not None:
            _assert_int64(seen)
            # Runtimes that would stretch one row of seen items over all users do not join them.
            given = torch.cat([item_ids, seen], 1)
        wrong = ((given < 0) | (given > self.num_items)).any(1)
        # Sizes counted as data: torch itself holds to their bounds, a runtime for ONNX does not.
        room = torch.ones_like(item_ids)
        wrong = wrong | (room.sum(1) > self.longest) | (room.sum(0) > self.max_batch).any()
        place = torch.arange(item_ids.shape[1], device=item_ids.device)
        count = (item_ids != 0).sum(1, keepdim=True)
        first = ((item_ids != 0).cumsum(1) == 0).sum(1, keepdim=True)
        row = torch.cat([item_ids, torch.zeros_like(item_ids)], 1).gather(1, place + first)
        wrong = wrong | ((row != 0) != (place < count)).any(1) | (count[:, 0] < 1)
        row = torch.where(wrong[:, None], 1, row)
        if seen is None:
            answer = self.ranker(row)
        else:
            answer = self.ranker(row, torch.where(wrong[:, None], 0, seen))
        if isinstance(answer, Tensor):
            return _or_nothing(answer, wrong)
        return *answer[:-1], _or_nothing(answer[-1], wrong)


def _or_nothing(answer: Tensor, wrong: Tensor) -> Tensor:
    """The answer ``[B, K]``, looked up beyond its end in rows that are wrong."""
    width = answer.shape[1]
    place = torch.arange(width, device=answer.device)
    return answer.gather(1, torch.where(wrong[:, None], width, place))


def _assert_int64(ids: Tensor) -> None:
    torch.ops.aten._assert_tensor_metadata(ids, dtype=torch.int64)


@contextmanager
def checked_by_aoti() -> Iterator[None]:
    """AOTInductor's code reads an input as if it had the example's dtype, and each row right behind
    the one before. It looks whether that is so only if an environment variable asks it to, and
    never at the distance of rows. What is compiled here always looks: it makes inputs of other
    strides contiguous and throws at another dtype, device or size.
    """
    from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu
    from torch._inductor.virtualized import V

    original = CppWrapperCpu.generate_input_output_runtime_checks

    def generate(self: Any) -> None:
        self.prefix.splice("#define __check_inputs_outputs __check_inputs_if_asked")
        original(self)
        self.prefix.splice("#undef __check_inputs_outputs")
        self.prefix.splice(_cpp(V.graph))

    CppWrapperCpu.generate_input_output_runtime_checks = generate  # type: ignore[method-assign]
    try:
        yield
    finally:
        CppWrapperCpu.generate_input_output_runtime_checks = original  # type: ignore[method-assign]


_CPP = """
static void adarec_fast_check(
    AtenTensorHandle& input, const std::string& name, int32_t dtype, int32_t device,
    const std::vector<std::array<int64_t, 2>>& bounds) {{
  auto require = [&](bool right, const std::string& what) {{
    if (!right) throw std::runtime_error(name + " must be " + what);
  }};
  int32_t found = 0, place = 0, number = 0;
  int64_t dims = 0, numel = 0;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(input, &found));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(input, &place));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(input, &number));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(input, &dims));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(input, &numel));
  require(found == dtype, "of the dtype in the manifest");
  require(place == device, "on the device in the manifest");
  require(dims == static_cast<int64_t>(bounds.size()), "of the shape in the manifest");
  int64_t* sizes = nullptr;
  int64_t* strides = nullptr;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(input, &sizes));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(input, &strides));
  std::vector<int64_t> dense(dims, 1);
  bool contiguous = true;
  for (int64_t d = dims - 1; d >= 0; --d) {{
    require(sizes[d] >= bounds[d][0] && sizes[d] <= bounds[d][1],
            "of " + std::to_string(bounds[d][0]) + " to " + std::to_string(bounds[d][1]) +
            " along axis " + std::to_string(d) + ", not " + std::to_string(sizes[d]));
    if (d + 1 < dims) dense[d] = dense[d + 1] * sizes[d + 1];
    contiguous = contiguous && (sizes[d] == 1 || strides[d] == dense[d]);
  }}
  if (contiguous) return;
  AtenTensorHandle copy = nullptr;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dims, sizes, dense.data(), dtype, device, number, &copy));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_copy_(copy, input, 0));
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_delete_tensor_object(input));
  input = copy;
}}

static void __check_inputs_outputs(AtenTensorHandle* inputs, AtenTensorHandle*) {{
  try {{
{checks}
  }} catch (...) {{
    // Nobody else owns them yet.
    for (int i = 0; i < {count}; ++i) aoti_torch_delete_tensor_object(inputs[i]);
    throw;
  }}
}}
"""


def _cpp(graph: Any) -> str:
    """The function that AOTInductor's code calls first."""
    from torch._inductor.codegen.cpp_utils import DEVICE_TO_INT
    from torch.utils._sympy.value_ranges import bound_sympy

    checks: list[str] = []
    owner: dict[Any, tuple[int, int]] = {}
    for place, tensor in enumerate(graph.graph_inputs.values()):
        bounds = []
        for axis, size in enumerate(tensor.get_size()):
            limits = bound_sympy(size, graph.sizevars.shape_env.var_to_range)
            # An axis that may be 1 is traced as one that is not.
            low = int(size) if size.is_number else 1
            high = 2**63 - 1 if limits.upper > 2**62 else int(limits.upper)
            bounds.append(f"{{{low}L, {high}L}}")
            first = owner.setdefault(size, (place, axis))
            if not size.is_number and first != (place, axis):
                checks.append(_same_size((place, axis), first))
        dtype = f"aoti_torch_dtype_{str(tensor.get_dtype()).removeprefix('torch.')}()"
        device = DEVICE_TO_INT[tensor.get_device().type]
        checks.insert(
            place,
            f'adarec_fast_check(inputs[{place}], "input {place}", {dtype}, {device}, '
            f"{{{', '.join(bounds)}}});",
        )
    return _CPP.format(
        checks="\n".join(f"    {check}" for check in checks), count=len(graph.graph_inputs)
    )


def _same_size(here: tuple[int, int], first: tuple[int, int]) -> str:
    """Two axes that the graph takes for one."""
    sizes = [f"ConstantHandle(inputs[{place}]).sizes()[{axis}]" for place, axis in (here, first)]
    return (
        f'if ({sizes[0]} != {sizes[1]}) throw std::runtime_error("input {here[0]} must be as long '
        f'along axis {here[1]} as input {first[0]} along axis {first[1]}");'
    )
