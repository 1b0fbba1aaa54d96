"""Make the packaged scorer of emoji again: pictures and captions of the training part, by contrast.

    OMP_NUM_THREADS=1 python tools/make_emoji_scorer.py      # about 15 minutes on one core

Needs the packaged first stage: half of what it sees went through that, with some noise on the
latents, so that what a network drew is judged as fairly as what was drawn by hand.
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sra2cli.data.digits import load_digits
from sra2cli.data.emoji import load_emoji, tone_of
from sra2cli.encoders.vae import load_vae
from sra2cli.evaluation.emoji_scorer import SCORER, EmojiScorer, judge_images, load_scorer
from sra2cli.evaluation.extractors import emoji_extractor, features_of
from sra2cli.evaluation.metrics import Statistics, frechet_distance
from sra2cli.evaluation.scores import wanted

STEPS, BATCH, RATE = 2500, 192, 4e-3
NOISE = (0.0, 0.15, 0.3)  # of the latents, whose variance is 1


@torch.no_grad()
def decoded(images: Tensor, noise: float) -> Tensor:
    """Pictures (N, 32, 32, 3) uint8 after the packaged first stage, with noise on the latents."""
    vae = load_vae("emoji")
    parts = []
    for part in images.split(256):
        mean = vae.encode(part).chunk(2, dim=1)[0]
        parts.append(torch.from_numpy(vae.decode(mean + noise * torch.randn_like(mean))))
    return torch.cat(parts)


def moved(images: Tensor, most: int = 2) -> Tensor:
    """Each picture shifted by up to so many pixels, white coming in, its light and contrast
    changed a little."""
    count, side = len(images), images.shape[1]
    x = F.pad(images.permute(0, 3, 1, 2), (most,) * 4, value=255)
    dy, dx = torch.randint(0, 2 * most + 1, (2, count)).tolist()
    x = torch.stack([im[:, a : a + side, b : b + side] for im, a, b in zip(x, dy, dx, strict=True)])
    gain = 1 + 0.06 * torch.randn(count, 1, 1, 1)
    return (255 - (255 - x.permute(0, 2, 3, 1).float()) * gain).clamp(0, 255)


def train(steps: int) -> EmojiScorer:
    """Contrast each picture with all training captions, and once more with its own skin tones."""
    torch.manual_seed(0)
    emoji = load_emoji().part("train")
    images, labels = torch.from_numpy(emoji.images), torch.from_numpy(emoji.labels)
    views = torch.stack([images, *(decoded(images, noise) for noise in NOISE)])
    weights = torch.tensor([float(len(NOISE)), *(1.0 for _ in NOISE)])  # half of them as drawn
    bases = [tone_of(caption)[0] for caption in emoji.captions]
    number = {base: i for i, base in enumerate(dict.fromkeys(bases))}
    base = torch.tensor([number[b] for b in bases])
    model = EmojiScorer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    for step in range(steps):
        rows = torch.randint(len(images), (BATCH,))
        batch = moved(views[torch.multinomial(weights, BATCH, replacement=True), rows])
        features = model(batch)
        cosines = F.normalize(features, dim=1) @ model.read(emoji.captions).T
        fits = cosines * model.sharpness.exp()
        same = base[rows][:, None] == base[None]  # of one base: they differ in skin tone alone
        tone = F.cross_entropy(fits.masked_fill(~same, -1e4), rows)
        kind = F.cross_entropy(model.logits(features), labels[rows], label_smoothing=0.05)
        chosen = fits[:, rows].T  # of each caption, among the pictures of the batch
        back = F.cross_entropy(
            chosen.masked_fill((rows[:, None] == rows) & ~torch.eye(BATCH, dtype=torch.bool), -1e4),
            torch.arange(BATCH),
        )
        loss = F.cross_entropy(fits, rows, label_smoothing=0.05) + 0.5 * (tone + back) + 0.2 * kind
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f} tone {tone.item():.3f}", flush=True)
    return model.eval()


@torch.no_grad()
def report() -> None:
    """What the packaged scorer makes of pictures it has and has not seen, after the first stage."""
    model, extractor = load_scorer(), emoji_extractor()
    torch.manual_seed(0)
    train, test = load_emoji().part("train"), load_emoji().part("test")
    for noise in (0.0, 0.2, 0.5):
        for name, part in (("trained on", train), ("held out", test)):
            images = decoded(torch.from_numpy(part.images), noise)
            kinds = torch.cat([model.logits(model(batch)).argmax(1) for batch in images.split(256)])
            right = float((kinds.numpy() == part.labels).mean())
            found = {**judge_images(images.numpy(), part.captions), "class": right}
            said = ", ".join(f"{key} {value:.3f}" for key, value in found.items())
            print(f"{name}, noise {noise}: {said}")

    def statistics(images: np.ndarray) -> Statistics:
        batches = np.array_split(images, -(-len(images) // 256))
        return features_of(extractor, batches, wanted(("fd-emoji",))).statistics["emoji"]

    real = statistics(train.images)
    some = train.images[np.random.default_rng(0).permutation(len(train.images))[:500]]
    for name, images in (
        ("500 trained on", some),
        ("those after the first stage", decoded(torch.from_numpy(some), 0.0).numpy()),
        ("those with noise 0.5", decoded(torch.from_numpy(some), 0.5).numpy()),
        ("held out", test.images),
        ("held out, after the first stage", decoded(torch.from_numpy(test.images), 0.0).numpy()),
        ("500 digits", load_digits()[0][:500]),
    ):
        print(f"fd-emoji of {name}: {frechet_distance(statistics(images), real):.2f}")


def main() -> None:
    """Train, save as float16, and print what it is worth."""
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--check", action="store_true", help="only print what it is worth")
    chosen = parser.parse_args()
    if not chosen.check:
        state = train(chosen.steps).state_dict()
        weights = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
        save_file({k: v.contiguous() for k, v in weights.items()}, SCORER)
    print(f"{SCORER.stat().st_size / 1e6:.2f} MB")
    report()


if __name__ == "__main__":
    main()
