"""What a backbone is: the contract between networks and all that trains, draws or looks with them.

A backbone is told what is noised (`x_t`), when (`t`) and under which `Condition`, and gives its
velocity with the tokens after the blocks that were asked for. Nothing else is known of it outside
this wing: see docs/architecture.md for what a new one takes.
"""

from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sra2cli.config.settings import Data, Model
from sra2cli.models.compiling import compile_each
from sra2cli.models.condition import Condition, as_condition

__all__ = ["Backbone", "Condition", "Config", "Output", "Shape", "as_condition", "check_depth"]


class _Output(NamedTuple):
    v: Tensor
    taps: dict[int, Tensor]


class Output(_Output):
    """Velocity v, shaped as x_t, and {depth: tokens (B, T, D)}; unpacks as these two.

    c: (B, D), the vector the blocks were conditioned with; None where there is none.
    class_taps: {depth: class token (B, D)}; empty where a network has none.
    """

    c: Tensor | None
    class_taps: dict[int, Tensor]

    def __new__(
        cls,
        v: Tensor,
        taps: dict[int, Tensor],
        c: Tensor | None = None,
        class_taps: dict[int, Tensor] | None = None,
    ) -> "Output":
        self = super().__new__(cls, v, taps)
        self.c, self.class_taps = c, class_taps or {}
        return self


@dataclass(frozen=True)
class Shape:
    """What others must know of a network.

    width: D, of its tokens. depth: its number of blocks. channels: C, of the latent; latent: its
    side. classes: labels it takes; 0: none. condition: its row of data.conditions.CONDITIONS.
    class_width: F, of a class token that is noised beside the latent; 0: none.
    text: (L, E), of the features of a caption; (0, 0): none, (0, E): of any length.
    """

    width: int
    depth: int
    patch: int
    channels: int
    latent: int
    classes: int = 0
    condition: str = "label"
    class_width: int = 0
    text: tuple[int, int] = (0, 0)

    @property
    def conditional(self) -> bool:
        """Whether it is told anything beside x_t and t."""
        return bool(self.classes) or self.condition != "label"

    @property
    def side(self) -> int:
        """Tokens along a side of the latent."""
        return self.latent // self.patch

    @property
    def tokens(self) -> int:
        """T, patch tokens of one latent."""
        return self.side**2

    @property
    def latents(self) -> tuple[int, int, int]:
        """Of a latent, without the batch."""
        return (self.channels, self.latent, self.latent)

    @property
    def state(self) -> tuple[int, ...]:
        """Of what is noised and integrated, without the batch: a latent, or latent and class token
        packed into one vector."""
        if self.class_width:
            return (self.channels * self.latent**2 + self.class_width,)
        return self.latents

    @property
    def work(self) -> int:
        """Multiply-accumulates of the blocks for one image, nearly."""
        return self.depth * self.tokens * 12 * self.width**2


class Config(Protocol):
    """All that shapes a network, as checkpoints record it."""

    @property
    def shape(self) -> Shape: ...

    def to_dict(self) -> dict[str, Any]: ...


class Backbone(nn.Module):
    """A velocity network made of blocks.

    A network says how it embeds its inputs into a stream, what its blocks are, and how it reads the
    velocity off the end of the stream; the walk over the blocks is the same for all.

    Attributes:
        config: all that shapes it. shape: what others know of it.
        blocks: what is compiled and checkpointed; each is called as block(stream, c).
        checkpointing: recompute each block in the backward pass instead of keeping it.
    """

    config: Config
    blocks: nn.ModuleList
    checkpointing: bool = False
    kind: ClassVar[str]  # its row of models.build.BACKBONES
    told: ClassVar[str] = "label"  # its row of data.conditions.CONDITIONS
    trained: ClassVar[bool] = True  # False: it is only drawn from
    of_resolution: ClassVar[tuple[str, ...]] = ()  # weights that belong to a latent's side,
    of_labels: ClassVar[tuple[str, ...]] = ()  # to the classes,
    of_captions: ClassVar[tuple[str, ...]] = ()  # and to the captions, by how their names begin

    @classmethod
    @abstractmethod
    def configure(cls, model: Model, data: Data) -> Any:
        """The config that a recipe asks for; ValueError where there can be none."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Backbone":
        """The network of a config as `config.to_dict` gave it."""

    @classmethod
    def outline(cls, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Shapes, by name, of the weights that decide how large a network of this config is.

        A file must hold them before one is built. ValueError for what is no such config.
        """
        return {}

    @abstractmethod
    def embed(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Any, Tensor]:
        """The stream that enters the first block, and the conditioning vector c (B, D)."""

    @abstractmethod
    def velocity(self, stream: Any, c: Tensor) -> Tensor:
        """v, shaped as x_t, from the stream after the last block."""

    def patch_tokens(self, stream: Any) -> Tensor:
        """The patch tokens (B, T, D) of a stream, row by row, whatever else it carries."""
        tokens: Tensor = stream
        return tokens

    def class_token(self, stream: Any) -> Tensor | None:
        """The class token (B, D) of a stream; None where it carries none."""
        return None

    def pack(self, z: Tensor, class_token: Tensor | None = None) -> Tensor:
        """The state of a latent (B, C, H, W) and, if there is one, a class token (B, F)."""
        return z if class_token is None else torch.cat([z.flatten(1), class_token], dim=1)

    def unpack(self, state: Tensor) -> tuple[Tensor, Tensor | None]:
        """What `pack` packed; of a velocity, the two velocities."""
        shape = self.shape
        if not shape.class_width:
            return state, None
        z, class_token = state.split([state.shape[1] - shape.class_width, shape.class_width], 1)
        return z.unflatten(1, shape.latents), class_token

    def guide(
        self,
        v: Tensor,
        v_null: Tensor,
        *,
        scale: float,
        channels: int | None = None,
        class_scale: float | None = None,
    ) -> Tensor:
        """Classifier-free guidance of velocities: v_null + scale * (v - v_null).

        Args:
            channels: guide the first n channels of the latent only; None: all.
            class_scale: of the class token; 0: it is not guided; None: as the latent.
        """
        (z, token), (z_null, token_null) = self.unpack(v), self.unpack(v_null)
        guided = z_null + scale * (z - z_null)
        if channels is not None:
            guided = torch.cat([guided[:, :channels], z[:, channels:]], 1)
        if token is not None and token_null is not None and class_scale != 0:
            by = scale if class_scale is None else class_scale
            token = token_null + by * (token - token_null)
        return self.pack(guided, token)

    def null(self, condition: Condition, drop: Tensor | None = None) -> Condition:
        """The unconditional condition: for all, or where `drop` (B,) is true.

        Label dropout in training and guidance in sampling both use it.
        """
        if condition.y is None:
            return condition
        y = torch.full_like(condition.y, self.shape.classes)
        return Condition(y=y if drop is None else torch.where(drop, y, condition.y))

    def tell_null(self, text: Tensor) -> None:
        """Take up the features (L, E) of the empty caption."""
        raise ValueError(f"{self.kind} is told no captions")

    def knows_null(self, text: Tensor) -> bool:
        """Whether these are the features of the empty caption that it holds, but for rounding."""
        return False

    @property
    def shape(self) -> Shape:
        return self.config.shape

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Condition | Tensor | None = None,
        *,
        taps: Collection[int] = (),
    ) -> Output:
        """Velocity, and the tokens after the blocks named in `taps` (1-based depths).

        Args:
            x_t: (B, C, H, W) noised latents, or what `pack` makes of them and class tokens.
            t: (B,) times in [0, 1]; 0 is data.
            condition: a Condition, or labels (B,) in [0, classes], `classes` being the null class;
                None for an unconditional network.
        """
        self._check_depths(taps)
        stream, c = self.embed(x_t, t, as_condition(condition))
        tapped, class_tapped = {}, {}
        for depth, block in enumerate(self.blocks, start=1):
            stream = self._run(block, stream, c)
            if depth in taps:
                tapped[depth] = self.patch_tokens(stream)
                if (token := self.class_token(stream)) is not None:
                    class_tapped[depth] = token
        return Output(self.velocity(stream, c), tapped, c, class_tapped)

    def tokens(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Condition | Tensor | None = None,
        *,
        depth: int,
    ) -> Tensor:
        """Tokens (B, T, D) after block `depth`; the blocks above it are not run."""
        self._check_depths([depth])
        stream, c = self.embed(x_t, t, as_condition(condition))
        for block in self.blocks[:depth]:
            stream = self._run(block, stream, c)
        return self.patch_tokens(stream)

    def compile_blocks(self) -> None:
        """torch.compile, block by block."""
        compile_each(self.blocks)

    def _check_depths(self, depths: Collection[int]) -> None:
        for depth in depths:
            if not 1 <= depth <= self.shape.depth:
                raise ValueError(f"depth {depth} is not a block of 1..{self.shape.depth}")

    def _run(self, block: nn.Module, stream: Any, c: Tensor) -> Any:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, stream, c, use_reentrant=False)
        return block(stream, c)


def check_depth(name: str, depth: int, shape: Shape) -> None:
    """Raise ValueError unless `depth` is one of the network's blocks, 1-based."""
    if not 1 <= depth <= shape.depth:
        raise ValueError(f"{name} is {depth}, but the network has blocks 1..{shape.depth}")
