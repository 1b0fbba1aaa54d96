"""Make the packaged digits classifier again; tools/make_first_stages.py makes first stages."""

import torch
import torch.nn.functional as F

from sra2cli.data.digits import load_digits
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


def main() -> None:
    """Make it again and print what it is worth."""
    from safetensors.torch import save_file

    classifier = train_classifier()
    images, labels = (torch.from_numpy(a[TRAINED_ON:]) for a in load_digits())
    weights = {k: v.half().contiguous() for k, v in classifier.state_dict().items()}
    save_file(weights, CLASSIFIER)
    accuracy = (load_classifier()(images)[1].argmax(1) == labels).float().mean()
    print(f"classifier: {accuracy:.1%} of the {len(labels)} digits it has not seen")


if __name__ == "__main__":
    main()
