"""From a corpus to scores of new recordings: fine-tune, choose weights and threshold on dev, report eval, score files.

    python examples/detect_spoofed_speech.py facebook/wav2vec2-base /data/ASVspoof2019 recordings/ --output detector

The corpus may have any layout that `hf-neuroplastic corpus show` knows. `hf-neuroplastic train`, `evaluate` and `predict` do
the same, and write tables, score files and pictures beside.
"""

import argparse
from pathlib import Path

from hf_neuroplastic import save_for_hub
from hf_neuroplastic.audio import load_corpus
from hf_neuroplastic.audio.detector import load_detector
from hf_neuroplastic.audio.detector_file import write_detector
from hf_neuroplastic.audio.evaluation import score
from hf_neuroplastic.audio.prediction import files_of, predictions
from hf_neuroplastic.audio.recipe import Recipe
from hf_neuroplastic.audio.training import detector_file_of, fine_tune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hub id or folder of a pretrained audio model")
    parser.add_argument("data", help="corpus with train, dev and eval")
    parser.add_argument("recordings", nargs="*", type=Path, help="files, and folders of files, to be scored")
    parser.add_argument("--output", type=Path, default=Path("detector"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of windows")
    arguments = parser.parse_args()

    train, dev, evaluation = (load_corpus(arguments.data, split) for split in ("train", "dev", "eval"))
    model, extractor = load_detector(arguments.model)
    recipe = Recipe(method="neuroplastic+dropin", steps=arguments.steps, seconds=arguments.seconds)
    model, run = fine_tune(model, extractor, train, dev, recipe)
    on_dev = score(model, extractor, dev, recipe.seconds)
    on_eval = score(model, extractor, evaluation, recipe.seconds)
    print(f"EER {100 * on_dev.eer:.1f} % on dev, which chose the weights, {100 * on_eval.eer:.1f} % on eval")

    detector = detector_file_of(run, recipe, train, on_dev)
    save_for_hub(model, arguments.output, processor=extractor)  # a plain Hugging Face model
    write_detector(arguments.output, detector)  # beside it: window and threshold, for `hf-neuroplastic predict`
    if arguments.recordings:
        unreadable: list[str] = []
        files = files_of(arguments.recordings)
        for row in predictions(model, extractor, files, detector, detector.threshold, unreadable):
            print(f"{row['file']}: {row['label']}, log-likelihood ratio {row['llr']:.2f}")
        for line in unreadable:
            print(f"not scored: {line}")


if __name__ == "__main__":
    main()
