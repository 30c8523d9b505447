"""NeuroPlastic with 32-bit and with 8-bit optimizer state on the demonstration's corpus, model and settings.

OMP_NUM_THREADS=1 python examples/studies/eight_bit_state.py --seeds 3
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from hf_neuroplastic.audio import demo, load_asvspoof2019, write_corpus
from hf_neuroplastic.audio.evaluation import score
from hf_neuroplastic.audio.training import fine_tune


def compare(seed: int, folder: Path) -> None:
    size = demo.scale(False, seed)
    corpus = write_corpus(folder / "corpus", seed=seed, utterances=size.utterances)
    demo.save_small_model(folder / "model", seed)
    train, dev, evaluation = (load_asvspoof2019(corpus, "LA", split) for split in ("train", "dev", "eval"))
    for method in ("neuroplastic", "neuroplastic-8bit"):
        model = AutoModelForAudioClassification.from_pretrained(folder / "model")
        extractor = AutoFeatureExtractor.from_pretrained(folder / "model")
        recipe = replace(size.recipe, method=method)
        model, run = fine_tune(model, extractor, train, dev, recipe)
        scores = score(model, extractor, evaluation, recipe.seconds)
        print(f"seed {seed}  {method:18} EER {100 * scores.eer:.1f} %  training loss {run.train_loss:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    for seed in range(parser.parse_args().seeds):
        with tempfile.TemporaryDirectory() as folder:
            compare(seed, Path(folder))


if __name__ == "__main__":
    main()
