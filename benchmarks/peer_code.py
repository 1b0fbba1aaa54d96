"""REPA's and SRA's own networks, losses and samplers, imported from checkouts of their users; a
step around them as their training scripts take it. Nothing of theirs is in this repository.

Of accelerate, which they train through, stands here what it does to a step on one device: the
network's forward runs under autocast and gives float32 back. SRA's teacher is not handed to it,
and stays in float32.
"""

import copy
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from sra2cli.core.errors import SetupError

SCALE = 0.18215  # of SD-VAE's latents, as both have it
CLASSES, WIDTH = 1000, 768  # of ImageNet; of DINOv2-B's features
ALIGN_WEIGHT = {"repa": 0.5, "sra": 0.2}  # SRA's before it falls


@dataclass(frozen=True)
class Mode:
    """How both sides compute. half: bf16 where autocast has it; compiled: block by block."""

    name: str
    half: bool = False
    compiled: bool = False

    def autocast(self, device: str) -> torch.autocast:
        return torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=self.half)


@dataclass(frozen=True)
class Peer:
    """A checkout: where its files are, and which commit it is."""

    name: str  # "repa" or "sra"
    folder: Path
    commit: str

    @classmethod
    def at(cls, name: str, root: Path) -> "Peer":
        """SetupError where there is none."""
        inner = root / "SiT-SRA" if name == "sra" and (root / "SiT-SRA").is_dir() else root
        for file in ("models/sit.py", "loss.py", "samplers.py"):
            if not (inner / file).is_file():
                raise SetupError(f"{root} is no checkout of {name.upper()}: it has no {file}")
        if importlib.util.find_spec("timm") is None:
            raise SetupError("the peers' networks need timm: pip install timm")
        git = ["git", "-C", str(root), "rev-parse", "HEAD"]
        found = subprocess.run(git, capture_output=True, text=True)
        return cls(name, inner, found.stdout.strip() or "unknown")

    def load(self, file: str) -> Any:
        """One of its files, as a module of a name of its own."""
        name = f"{self.name}_{Path(file).stem}"
        spec = importlib.util.spec_from_file_location(name, self.folder / file)
        assert spec is not None and spec.loader is not None
        module: ModuleType = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    def network(self, size: str, depth: int) -> nn.Module:
        """As its training makes it, of 256 px."""
        options: dict[str, Any] = {"fused_attn": True, "qk_norm": False}
        if self.name == "repa":
            options |= {"z_dims": [WIDTH], "encoder_depth": depth}
        make = self.load("models/sit.py").SiT_models[f"SiT-{size}"]
        network: nn.Module = make(input_size=32, num_classes=CLASSES, use_cfg=True, **options)
        return network


class PeerStep:
    """Their training step on one batch that is ready on the device, and their samplers.

    Args:
        depth, teacher_depth: of the blocks that are aligned; the second is SRA's.
        moments: (B, 8, 32, 32) mean‖std. labels: (B,). features: (B, T, 768), for REPA.
    """

    def __init__(
        self,
        peer: Peer,
        size: str,
        *,
        depth: int,
        teacher_depth: int,
        mode: Mode,
        device: str,
        moments: Tensor,
        labels: Tensor,
        features: Tensor | None,
    ):
        self.peer, self.mode, self.device = peer, mode, device
        self.moments, self.labels, self.features = moments, labels, features
        self.network = peer.network(size, depth).to(device).train()
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        if mode.compiled:
            for network in (self.network, self.average):
                for block in network.blocks:  # type: ignore[union-attr]
                    block.compile(dynamic=False)
        losses, self.samplers = peer.load("loss.py"), peer.load("samplers.py")
        if peer.name == "repa":
            self.loss: Callable[..., Any] = losses.SILoss()
        else:
            self.loss = losses.SRALoss(
                block_out_s=depth, block_out_t=teacher_depth, loss_type="cos"
            )
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, weight_decay=0.0)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """The network as accelerate wraps it."""
        with self.mode.autocast(self.device):
            found = self.network(*inputs, **options)
        return in_float32(found)

    def step(self) -> None:
        """Posterior draw, losses, backward, clipping, AdamW, EMA, and what it logs."""
        with torch.no_grad():
            mean, std = self.moments.chunk(2, dim=1)
            z = (mean + std * torch.randn_like(mean)) * SCALE
        if self.peer.name == "repa":
            denoising, aligning = self.loss(self.forward, z, {"y": self.labels}, zs=[self.features])
        else:
            denoising, aligning = self.loss(self.forward, z, self.average, self.labels)
        parts = denoising.mean(), aligning.mean()
        (parts[0] + ALIGN_WEIGHT[self.peer.name] * parts[1]).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.update_average()
        for value in (*parts, norm):  # read at every step
            value.detach().item()

    @torch.no_grad()
    def update_average(self) -> None:
        """Weight by weight, as theirs."""
        averaged = dict(self.average.named_parameters())
        for name, weight in self.network.named_parameters():
            averaged[name].mul_(0.9999).add_(weight.detach(), alpha=1 - 0.9999)

    def sample(self, solver: str, steps: int, scale: float, interval: tuple[float, float]) -> None:
        """Latents of one batch, by their Euler or Euler-Maruyama."""
        noise = torch.randn(len(self.labels), 4, 32, 32, device=self.device)
        draw = {"euler": "euler_sampler", "em": "euler_maruyama_sampler"}[solver]
        with torch.no_grad(), self.mode.autocast(self.device):
            getattr(self.samplers, draw)(
                self.average,
                noise,
                self.labels,
                num_steps=steps,
                cfg_scale=scale,
                guidance_low=interval[0],
                guidance_high=interval[1],
            )


def in_float32(found: Any) -> Any:
    """Half precision in tuples and lists, brought back."""
    if isinstance(found, tuple | list):
        return type(found)(in_float32(part) for part in found)
    half = isinstance(found, Tensor) and found.is_floating_point()
    return found.float() if half else found
