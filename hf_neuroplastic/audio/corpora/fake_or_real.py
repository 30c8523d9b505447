"""Fake-or-Real (Reimao and Tzerpos 2019): four variants, each with training, validation and testing, real and fake.

Downloads are often nested once more: for-norm/for-norm/training/real.
"""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset

from .folder import load_folder
from .rows import OnError, check_one_of

VARIANTS = ("for-original", "for-norm", "for-2sec", "for-rerec")
OTHER_NAMES = {"for-2sec": ("for-2seconds",), "for-rerec": ("for-rerecorded",)}


def load_fake_or_real(
    root: str | Path,
    split: str = "train",
    *,
    variant: str | None = None,
    on_error: OnError | None = None,
    check: bool = True,
) -> Dataset:
    """One split of a variant. Arguments and errors as `load_folder`.

    variant: for-original, for-norm, for-2sec or for-rerec; needed where `root` holds several.
    """
    held = variants_in(Path(root))
    if variant is not None:
        check_one_of("variant", variant, VARIANTS)
    if not held or (variant is None and len(held) > 1) or (variant is not None and variant not in held):
        told = ", ".join(held) or "none"
        raise ValueError(f"root={str(root)!r} holds the variants {told}; choose one of them as variant, got {variant}.")
    return load_folder(held[variant or next(iter(held))], split, on_error=on_error, check=check)  # type: ignore[arg-type]


def variants_in(root: Path) -> dict[str, Path]:
    """Variants and their folders."""
    found = {
        name: [root / each for each in (name, *OTHER_NAMES.get(name, ())) if (root / each).is_dir()]
        for name in VARIANTS
    }
    return {name: places[0] for name, places in found.items() if places}
