"""Datasets of bona fide and spoofed audio: loaders, decoding, collation, and a synthetic corpus."""

try:
    from .collator import AudioCollator
    from .corpora.asvspoof2019 import load_asvspoof2019
    from .corpora.folder import load_folder
    from .corpora.readable import keep_readable
    from .corpora.rows import LABELS, audio_dataset
    from .decoding import AudioDecodingError, decode, load_audio, resample
    from .synthetic.corpus import write_corpus
except ModuleNotFoundError as error:
    raise ImportError(
        f'hf_neuroplastic.audio needs {error.name}: pip install "hf-neuroplastic[demo]"', name=error.name
    ) from error

__all__ = [
    "LABELS",
    "AudioCollator",
    "AudioDecodingError",
    "audio_dataset",
    "decode",
    "keep_readable",
    "load_asvspoof2019",
    "load_audio",
    "load_folder",
    "resample",
    "write_corpus",
]
