"""From images and a machine to sizes, each with its reason. No size here was tuned: they are those
of the demos on a CPU and of the papers on a GPU, cut to what the images and the machine allow."""

from dataclasses import dataclass
from typing import Any

from sra2cli.suggest.look import Images, Machine

SIDES = (32, 64, 128, 256)
ON_CPU = 64  # pixels at most
FEW, MANY = 20_000, 200_000  # images
EPOCHS = {"cpu": 100, "gpu": 400}
STEPS = {"cpu": (2_400, 20_000), "gpu": (10_000, 400_000)}  # least and most
CLASS_FEW = 20  # images of a class: fewer are learned by heart


@dataclass(frozen=True)
class Sized:
    """What is suggested. network: `model` of the recipe; what: the same in words.

    vae: settings of `sra2 vae`. train: of the recipe. why: a line for each choice.
    """

    resolution: int
    vae: dict[str, Any]
    network: dict[str, Any]
    what: str
    depth: int
    train: dict[str, Any]
    why: list[str]


def choose(images: Images, machine: Machine) -> Sized:
    """Sizes of all, smallest part first."""
    side, because = resolution(images, machine)
    why = [because]
    vae, because = first_stage(machine)
    why.append(because)
    network, what, depth, because = backbone(images, machine)
    why.append(f"{what}: {because}")
    train, because = training(images, machine, what)
    why.append(because)
    if images.classes and images.fewest < CLASS_FEW:
        why.append(
            f"the smallest class has {images.fewest} images: of fewer than about {CLASS_FEW} a "
            "network draws copies, or nothing of its own"
        )
    return Sized(side, vae, network, what, depth, train, why)


def resolution(images: Images, machine: Machine) -> tuple[int, str]:
    """The largest side to which nothing usual is enlarged and that the machine can do."""
    least, median, largest = images.sides
    most = SIDES[-1] if machine.gpu else ON_CPU
    side = max((s for s in SIDES if s <= min(median, most)), default=SIDES[0])
    seen = f"short sides are {least} to {largest} px, half of them {median} or more"
    if least == largest:
        seen = f"all short sides are {median} px"
    if side == most and median > most:
        limit = "the papers' size" if machine.gpu else f"above {ON_CPU} px a CPU takes days"
        return side, f"{side} px: {seen}; {limit}"
    return side, f"{side} px: {seen}, and little should be enlarged"


def first_stage(machine: Machine) -> tuple[dict[str, Any], str]:
    """Of one's own; the side of its latents follows from the resolution."""
    if machine.gpu is None:
        settings: dict[str, Any] = {"widths": (16, 32, 64), "steps": 4000}
        return settings, "first stage of your own, 0.6M parameters: without a GPU the smallest"
    settings = {"steps": 20_000, "batch": 32}
    return settings, (
        "first stage of your own; where the hub or a file can be had, a published one "
        "(--vae stabilityai/sd-vae-ft-mse) is better for photographs of 256 px"
    )


def backbone(images: Images, machine: Machine) -> tuple[dict[str, Any], str, int, str]:
    """Settings of the network, its name, the block that is aligned, and why."""
    if images.told == "text":
        size = "S/2" if machine.gpu is None or images.count < FEW else "B/2"
        return {"kind": "mmdit", "size": size}, f"MMDiT-{size}", 2, "the images have captions"
    if machine.gpu is None:
        wide = machine.cores > 4
        depth, width = (8, 192) if wide else (6, 96)
        shape = {"size": "custom", "depth": depth, "width": width, "heads": 3, "patch": 2}
        return shape, f"SiT of {depth} blocks, {width} wide", 2, f"{machine.cores} cores, no GPU"
    memory = f"{machine.gpu}, {machine.gpu_memory_gb:.0f} GB"
    if images.count < FEW or machine.gpu_memory_gb < 12:
        return {"size": "S/2"}, "SiT-S/2", 2, f"{images.count:,} images; {memory}"
    if images.count < MANY or machine.gpu_memory_gb < 40:
        return {"size": "B/2"}, "SiT-B/2", 2, f"{images.count:,} images; {memory}"
    return {"size": "XL/2"}, "SiT-XL/2", 8, f"{images.count:,} images; {memory}"


def training(images: Images, machine: Machine, what: str) -> tuple[dict[str, Any], str]:
    """Batch, steps, rate and EMA."""
    kind = "gpu" if machine.gpu else "cpu"
    batch = 32 if kind == "cpu" else 64 if images.count < FEW else 256
    least, most = STEPS[kind]
    wanted = EPOCHS[kind] * images.count // batch
    steps = round(min(max(wanted, least), most), -2)
    small = kind == "cpu" or what == "MMDiT-S/2"
    rate = (1e-3 if what.endswith("192 wide") else 2e-3) if small else 1e-4
    ema = 0.99 if steps <= 5_000 else 0.999 if steps <= 30_000 else 0.9999
    found: dict[str, Any] = {"steps": steps, "batch": batch, "lr": rate, "ema": ema}
    if small:
        found["betas"] = [0.9, 0.95]
    if what.endswith("XL/2") and machine.gpu_memory_gb < 100:
        found["micro_batch"] = 64
    epochs = steps * batch / images.count
    return found, (
        f"{steps:,} steps of {batch}: each image is seen {epochs:,.0f} times; the EMA is of about "
        f"the last {1 / (1 - ema):,.0f} steps"
    )
