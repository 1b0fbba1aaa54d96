"""Make the packaged first stage of the emoji again: 3x32x32 → 4x8x8 latents of mean 0, variance 1.

    OMP_NUM_THREADS=1 python tools/make_emoji_vae.py      # about 15 minutes on one core

It is trained on the training part alone, so that held-out pictures are new to it too.
"""

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sra2cli.data.emoji import ASSETS, RESOLUTION, load_emoji

FOLDER = ASSETS / "emoji-vae"
STEPS, BATCH, RATE = 7000, 16, 2.5e-3
KL = 3e-4  # of a dimension: enough to keep the latents near a normal, little enough to keep detail


def pixels(split: Any) -> Tensor:
    """(N, 3, 32, 32) in -1..1 of one part."""
    images = torch.from_numpy(load_emoji().part(split).images)
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def build() -> Any:
    """An AutoencoderKL of 0.65M parameters: 1.3 MB as float16."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[16, 32, 64],
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=RESOLUTION,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def edges(a: Tensor, b: Tensor) -> Tensor:
    """L1 distance of differences of neighbours: small pictures are mostly edges."""
    error = a - b
    across = error[..., 1:] - error[..., :-1]
    down = error[..., 1:, :] - error[..., :-1, :]
    return across.abs().mean() + down.abs().mean()


def train(x: Tensor, steps: int) -> Any:
    """Reconstruct pictures, flipped at random."""
    torch.manual_seed(0)
    model = build().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.05)
    for step in range(steps):
        images = x[torch.randint(len(x), (BATCH,))]
        flipped = torch.rand(BATCH, 1, 1, 1) < 0.5
        images = torch.where(flipped, images.flip(-1), images)
        images = images.contiguous(memory_format=torch.channels_last)
        posterior = model.encode(images).latent_dist
        output = model.decode(posterior.sample()).sample
        loss = F.l1_loss(output, images) + F.mse_loss(output, images) + 0.5 * edges(output, images)
        loss = loss + KL * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 500 == 0:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)
    return model.eval()


@torch.no_grad()
def fold(model: Any, x: Tensor) -> None:
    """Put each channel's mean and deviation into the convolutions beside the latent.

    quant_conv gives (mean, log variance), so z' = (z - mean) / deviation is a change of its rows;
    post_quant_conv takes z' back to z.
    """
    latents = torch.cat([model.encode(part).latent_dist.sample() for part in x.split(256)])
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    into, back = model.quant_conv, model.post_quant_conv
    channels = len(mean)
    into.weight[:channels] /= deviation[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / deviation
    into.bias[channels:] -= 2 * deviation.log()
    back.bias += (back.weight[:, :, 0, 0] * mean).sum(dim=1)
    back.weight *= deviation[None, :, None, None]


@torch.no_grad()
def decibels(model: Any, x: Tensor, noise: float = 0.0) -> float:
    """PSNR of 8-bit reconstructions through the means of the latents, with noise on those."""
    error = torch.tensor(0.0)
    for part in x.split(256):
        latents = model.encode(part).latent_dist.mode()
        latents = latents + noise * torch.randn_like(latents)
        output = model.decode(latents).sample.clamp(-1, 1)
        error += ((output - part) * 127.5).round().square().sum()
    return float(10 * torch.log10(255**2 / (error / x.numel())))


def main() -> None:
    """Train, fold, save as float16 and print what it is worth."""
    from diffusers import AutoencoderKL

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--check", action="store_true", help="only print what it is worth")
    chosen = parser.parse_args()
    seen, held_out = pixels("train"), pixels("test")
    if not chosen.check:
        model = train(seen, chosen.steps)
        fold(model, seen)
        model.half().save_pretrained(FOLDER)
    model = AutoencoderKL.from_pretrained(FOLDER, torch_dtype=torch.float32).eval()
    with torch.no_grad():
        posteriors = [model.encode(part).latent_dist for part in seen.split(256)]
    latents = torch.cat([p.sample() for p in posteriors])
    print(f"PSNR {decibels(model, seen):.2f} dB, held out {decibels(model, held_out):.2f} dB")
    for noise in (0.1, 0.2, 0.3):
        print(f"with noise {noise} on the latents: {decibels(model, seen, noise):.2f} dB")
    for name, values in (
        ("mean", latents.mean(dim=(0, 2, 3))),
        ("deviation", latents.std(dim=(0, 2, 3))),
        ("of the posterior", torch.cat([p.std for p in posteriors]).mean(dim=(0, 2, 3))),
    ):
        print(f"{name}:", *(f"{value:+.3f}" for value in values.tolist()))


if __name__ == "__main__":
    main()
