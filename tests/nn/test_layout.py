"""Layouts: a slice read is the slice of the whole, writing undoes reading, and heads lie where they should."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpipe.nn.layout import (
    Direct,
    GroupedHeads,
    HeadsOut,
    Index,
    Joined,
    Layout,
    PackedHeads,
    SplitHeads,
    Stacked,
    Transposed,
)
from jaxpipe.nn.layout_experts import FusedGateUp, PerExpert, SwappedExperts

NAMES = ("q.weight", "k.weight", "v.weight")


@dataclass
class Disk:
    """Random tensors of a layout, and how many values were read of them."""

    tensors: dict[str, np.ndarray]
    touched: int = 0

    @classmethod
    def of(cls, layout: Layout) -> "Disk":
        rng = np.random.default_rng(0)
        return cls({name: rng.standard_normal(shape).astype(np.float32) for name, shape in layout.tensors.items()})

    def read(self, name: str, index: Index) -> np.ndarray:
        tensor = self.tensors[name]
        assert len(index) == tensor.ndim
        for part, size in zip(index, tensor.shape, strict=True):
            assert 0 <= part.start < part.stop <= size
        found = tensor[index]
        self.touched += found.size
        return found


def whole(shape: tuple[int, ...]) -> Index:
    return tuple(slice(0, n) for n in shape)


size = st.integers(1, 5)


@st.composite
def packed(draw: st.DrawFn) -> tuple[PackedHeads, tuple[int, ...]]:
    kv_heads, copies, per_group, head_dim = draw(size), draw(size), draw(size), draw(size)
    width = draw(st.none() | size)
    groups = kv_heads * copies
    shape = (groups, (per_group + 2) * head_dim) if width is None else (width, groups, (per_group + 2) * head_dim)
    kind = draw(st.sampled_from([PackedHeads, GroupedHeads]))
    names = NAMES if kind is PackedHeads and draw(st.booleans()) else ("qkv.weight",)
    return kind(names, groups * per_group, kv_heads, groups, head_dim, width, draw(st.booleans())), shape


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Layout, tuple[int, ...]]:
    """Any layout with the shape of its array."""
    a, b, c, flag = draw(size), draw(size), draw(size), draw(st.booleans())
    bias = draw(st.booleans())
    choices: dict[str, Callable[[], tuple[Layout, tuple[int, ...]]]] = {
        "direct": lambda: (Direct("weight", (a, b, c)), (a, b, c)),
        "transposed": lambda: (Transposed("weight", (a, b)), (a, b)),
        "stacked": lambda: (Stacked(NAMES, a, None if bias else b), (3, a) if bias else (b, 3, a)),
        "joined": lambda: (Joined("weight", c, a, None if bias else b), (c, a) if bias else (b, c, a)),
        "split": lambda: (SplitHeads(NAMES, a, c, None if bias else b), (a, 3 * c) if bias else (b, a, 3 * c)),
        "out": lambda: (HeadsOut("weight", a, b, c, flag), (a, b, c)),
        "per_expert": lambda: (PerExpert(c, Stacked(NAMES[:2], a, b)), (c, b, 2, a)),
        "fused": lambda: (
            FusedGateUp("weight", c, None if bias else b, a, interleaved=flag, transposed=draw(st.booleans())),
            (c, 2, a) if bias else (c, b, 2, a),
        ),
        "swapped": lambda: (SwappedExperts("weight", (a, b, c)), (a, b, c)),
    }
    kind = draw(st.sampled_from([*choices, "packed"]))
    return draw(packed()) if kind == "packed" else choices[kind]()


@st.composite
def slices(draw: st.DrawFn, shape: tuple[int, ...]) -> Index:
    starts = [draw(st.integers(0, n - 1)) for n in shape]
    return tuple(slice(start, draw(st.integers(start + 1, n))) for start, n in zip(starts, shape, strict=True))


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_a_slice_read_is_the_slice_of_the_whole(data: st.DataObject):
    layout, shape = data.draw(layouts())
    disk = Disk.of(layout)
    array = layout.read(disk.read, whole(shape))
    assert array.shape == shape
    index = data.draw(slices(shape))
    assert np.array_equal(layout.read(disk.read, index), array[index])


@given(layouts())
@settings(max_examples=400, deadline=None)
def test_writing_undoes_reading(drawn: tuple[Layout, tuple[int, ...]]):
    layout, shape = drawn
    disk = Disk.of(layout)
    written = layout.write(layout.read(disk.read, whole(shape)))
    assert set(written) == set(disk.tensors)
    for name, tensor in disk.tensors.items():
        assert np.array_equal(written[name], tensor), name


@given(packed())
@settings(max_examples=200, deadline=None)
def test_every_head_lies_in_its_group(drawn: tuple[PackedHeads, tuple[int, ...]]):
    """Group g holds the queries that attend to its key and value, wherever the checkpoint has them."""
    layout, shape = drawn
    disk, h = Disk.of(layout), layout.head_dim
    per_kv = layout.heads // layout.kv_heads
    tensors = [t if layout.transposed or layout.width is None else t.T for t in disk.tensors.values()]
    rows = np.concatenate(tensors).reshape(-1, h, *tensors[0].shape[1:])  # heads as they lie on disk
    if isinstance(layout, GroupedHeads):
        grouped = rows.reshape(layout.kv_heads, per_kv + 2, *rows.shape[1:])
        q = grouped[:, :per_kv].reshape(-1, *rows.shape[1:])
        k, v = grouped[:, per_kv], grouped[:, per_kv + 1]
    else:
        q, k, v = np.split(rows, [layout.heads, layout.heads + layout.kv_heads])
    array = layout.read(disk.read, whole(shape))
    array = array if layout.width is None else np.moveaxis(array, 0, -1)  # (G, (H/G + 2) h, D)
    array = array.reshape(layout.groups, -1, h, *array.shape[2:])
    copies = layout.groups // layout.kv_heads
    for group in range(layout.groups):
        queries = layout.heads // layout.groups
        assert np.array_equal(array[group, :queries], q[group * queries : (group + 1) * queries])
        assert np.array_equal(array[group, -2], k[group // copies])
        assert np.array_equal(array[group, -1], v[group // copies])


@given(packed())
@settings(max_examples=50, deadline=None)
def test_repeating_heads_equals_reading_them_repeated(drawn: tuple[PackedHeads, tuple[int, ...]]):
    layout, shape = drawn
    disk = Disk.of(layout)
    once = replace(layout, groups=layout.kv_heads)
    array: Any = once.read(disk.read, whole(once.unrepeated))
    assert np.array_equal(np.asarray(layout.repeat(array)), layout.read(disk.read, whole(shape)))


@pytest.mark.parametrize("kind", [PackedHeads, GroupedHeads])
def test_only_the_groups_that_are_asked_for_are_read(kind: type[PackedHeads]):
    layout = kind(("qkv.weight",), 12, 4, 4, 2, 6)
    disk = Disk.of(layout)
    found = layout.read(disk.read, (slice(1, 4), slice(2, 3), slice(0, 10)))
    assert disk.touched == found.size
