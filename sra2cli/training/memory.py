"""What a training holds in memory, from its structure: no weights are made, nothing is computed."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sra2cli.config.settings import Recipe
from sra2cli.data.batches import Batch
from sra2cli.data.conditions import blank
from sra2cli.models.build import shape_of
from sra2cli.models.contract import Condition, Shape
from sra2cli.training.counting import WIDTH, parameters
from sra2cli.training.objective import Objective

STATE = 20  # bytes of a parameter: itself, gradient, two moments of AdamW, EMA; float32
CARD = 80e9  # bytes of the GPU that recipes are written for
CONTEXT = 4e9  # bytes beside tensors: CUDA, its libraries, what the allocator cannot use
SPARE = 1.1  # times what is kept for the backward: what lives for a moment beside it
AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Memory:
    """Bytes. fixed: whatever the batch. image: that one more image keeps for the backward pass,
    where blocks are not compiled; compiled ones keep less."""

    fixed: int
    image: int

    def of(self, micro: int) -> float:
        """What a micro-batch takes in all."""
        return self.fixed + SPARE * self.image * micro + CONTEXT

    def largest(self, own: int, bytes_: float, *, group: int = 1) -> int | None:
        """The largest micro-batch that fits: it divides the samples of a process, `own`, and is of
        whole groups. None: none does."""
        sizes = [size for size in range(group, own + 1, group) if own % size == 0]
        return max((size for size in sizes if self.of(size) <= bytes_), default=None)


def memory_of(wanted: Recipe, *, feature_width: int | None = None) -> Memory:
    """Of a recipe whose store's sizes are known, in its own precision."""
    group, width = wanted.train.group if wanted.grouped else 1, feature_width or WIDTH
    with FakeTensorMode(allow_non_fake_inputs=True):  # shapes alone
        objective = Objective(wanted, feature_width=width)
        objective.network.checkpointing = wanted.train.checkpointing
        one, two = (_kept(objective, wanted, count, width) for count in (group, 2 * group))
        held = STATE * parameters(objective)
        held += 0 if wanted.frozen is None else 4 * parameters(objective.network)
    image = (two - one) // group
    return Memory(held + one - group * image, image)


def _kept(objective: Objective, wanted: Recipe, count: int, width: int) -> int:
    """Bytes that so many images keep for the backward pass, and casts of weights with them."""
    shape, seen = shape_of(wanted), dict[int, Tensor]()
    weights = {p.untyped_storage()._cdata for p in objective.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        at = tensor.untyped_storage()._cdata
        if at not in weights:
            seen[at] = tensor
        return tensor

    def teacher(_x: Tensor, _t: Tensor, _condition: Condition, _depth: int) -> Tensor:
        return torch.zeros(count, shape.tokens, shape.width)

    dtype = AMP.get(wanted.train.precision)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None),
    ):
        objective(_blank_batch(shape, count, width), None, teacher, teacher)
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


def _blank_batch(shape: Shape, count: int, width: int) -> Batch:
    """A batch, where only the shapes matter."""
    z, t = torch.zeros(count, *shape.latents), torch.zeros(count)
    told = blank(shape).map(lambda x: x.new_zeros(count, *x.shape[1:]))
    return Batch(
        z=z,
        mean=z,
        noise=torch.zeros(count, *shape.state),
        t=t,
        condition=told,
        teacher_uniform=t,
        drop=torch.zeros(count, dtype=torch.bool),
        features=torch.zeros(count, shape.tokens, width),
        class_feature=torch.zeros(count, shape.class_width) if shape.class_width else None,
    )
