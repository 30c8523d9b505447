"""A model that grows while it trains, is pruned below its first width, and stays a plain Hugging Face model throughout.

    python examples/grow_and_compress.py --output grown

A small ViT with random weights tells pictures with a bright upper half from those with a bright lower half. First run: every
feed-forward layer gets new neurons. Second run: the weakest go, until a share of the neurons is left, and `compact` takes their
slots out. After each run the checkpoint is opened by stock `from_pretrained`, and computes what the trained model computes.
"""

import argparse
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from hf_neuroplastic import DropInCallback, DropInConfig, NeuroPlastic, compact

SIDE, NOISE = 16, 0.5  # pixels; noise that hides the bright half


def pictures(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Rows of [3, SIDE, SIDE] and a label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    pixels = NOISE * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    for picture, label in zip(pixels, labels, strict=True):
        picture[:, : SIDE // 2] += 0.25 * (1 - 2 * label)
    return [{"pixel_values": picture, "labels": label} for picture, label in zip(pixels, labels, strict=True)]


def train(model: ViTForImageClassification, config: DropInConfig, steps: int, folder: Path) -> None:
    trainer = Trainer(
        model,
        TrainingArguments(
            str(folder), max_steps=steps, per_device_train_batch_size=32, save_strategy="no", report_to=[]
        ),
        train_dataset=pictures(512, seed=0),
        optimizers=(NeuroPlastic(model.parameters(), lr=1e-3), None),
        callbacks=[callback := DropInCallback(config)],
    )
    trainer.train()
    callback.dropin.unpatch()


def tell(what: str, model: ViTForImageClassification, folder: Path) -> None:
    """Saves, opens with stock transformers, compares, and measures."""
    model.eval().save_pretrained(folder)
    stock = ViTForImageClassification.from_pretrained(folder)
    rows = pictures(512, seed=1)
    pixels, labels = (torch.stack([row[name] for row in rows]) for name in ("pixel_values", "labels"))
    with torch.no_grad():
        logits = stock(pixels.to(stock.device)).logits.cpu()
        assert torch.equal(logits, model(pixels.to(model.device)).logits.cpu())
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    print(f"{what}: {stock.config.intermediate_size} neurons a layer, accuracy {accuracy:.3f}, {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("grown"))
    parser.add_argument("--steps", type=int, default=200, help="of each run")
    parser.add_argument("--neurons", type=int, default=32, help="new ones in each layer")
    parser.add_argument("--share", type=float, default=0.25, help="of the neurons that stays at the end")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=SIDE,
        patch_size=4,
        num_labels=2,
    )
    model = ViTForImageClassification(config)
    train(model, DropInConfig.dropin(arguments.neurons), arguments.steps, arguments.output / "run-1")
    tell("grown", model, arguments.output / "wide")
    train(model, DropInConfig.compress(arguments.share), arguments.steps, arguments.output / "run-2")
    tell("pruned", model, arguments.output / "pruned")
    taken = compact(model)
    tell(f"compacted by {taken} slots", model, arguments.output / "narrow")


if __name__ == "__main__":
    main()
