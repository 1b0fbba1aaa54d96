"""Make the packaged digits networks again."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sra2cli.data.digits import ASSETS, RESOLUTION, load_digits
from sra2cli.evaluation.digits_classifier import (
    CLASSIFIER,
    TRAINED_ON,
    DigitsClassifier,
    load_classifier,
)


def train_classifier(epochs: int = 60) -> DigitsClassifier:
    """Train on the first 1,500 digits, each shifted by up to 3 pixels."""
    torch.manual_seed(0)
    images, labels = (torch.from_numpy(a[:TRAINED_ON]) for a in load_digits())
    model = DigitsClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    batches = TRAINED_ON // 50
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, epochs * batches)
    for _ in range(epochs):
        for rows in torch.randperm(TRAINED_ON).split(50):
            dy, dx = torch.randint(-3, 4, (2,)).tolist()
            _, logits = model(images[rows].roll((dy, dx), dims=(1, 2)))
            loss = F.cross_entropy(logits, labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def train_vae(steps: int = 400) -> Any:
    """Train the first stage on all digits, and set scaling_factor to 1/std of its latents.

    Sixteen channels, where four would do: on such latents SRA 2 shows (docs/decisions.md).
    """
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    x = torch.from_numpy(load_digits()[0]).permute(0, 3, 1, 2).float() / 127.5 - 1
    model = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[16, 32, 48],
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=16,
        sample_size=RESOLUTION,
        mid_block_add_attention=False,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(steps):
        images = x[torch.randint(len(x), (48,))]
        posterior = model.encode(images).latent_dist
        output = model.decode(posterior.sample()).sample
        loss = F.l1_loss(output, images) + 1e-6 * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    model.half().float()  # the values that are stored
    with torch.no_grad():
        latents = torch.cat([model.encode(part).latent_dist.sample() for part in x.split(256)])
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return model


def main() -> None:
    """Make both networks again and print what they are worth."""
    from safetensors.torch import save_file

    classifier = train_classifier()
    images, labels = (torch.from_numpy(a[TRAINED_ON:]) for a in load_digits())
    weights = {k: v.half().contiguous() for k, v in classifier.state_dict().items()}
    save_file(weights, CLASSIFIER)
    accuracy = (load_classifier()(images)[1].argmax(1) == labels).float().mean()
    print(f"classifier: {accuracy:.1%} of the {len(labels)} digits it has not seen")

    vae = train_vae()
    vae.half().save_pretrained(ASSETS / "digits-vae")
    vae.float()
    x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        output = vae.decode(vae.encode(x).latent_dist.mode()).sample
        predicted = load_classifier()(((output.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1))[1]
    print(f"vae: mean absolute error {(output - x).abs().mean() * 127.5:.2f} of 255,")
    print(f"     {(predicted.argmax(1) == labels).float().mean():.1%} still recognised after it,")
    print(f"     scaling_factor {vae.config.scaling_factor}")


if __name__ == "__main__":
    main()
