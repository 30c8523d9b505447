"""Datasets of bona fide and spoofed audio: loaders, decoding, collation, and a synthetic corpus."""

try:
    from .collator import AudioCollator
    from .corpora.asvspoof5 import load_asvspoof5
    from .corpora.asvspoof2019 import load_asvspoof2019
    from .corpora.asvspoof2021 import load_asvspoof2021
    from .corpora.fake_or_real import load_fake_or_real
    from .corpora.folder import load_folder
    from .corpora.in_the_wild import load_in_the_wild
    from .corpora.layouts import load_corpus, recognise
    from .corpora.mlaad import load_mlaad
    from .corpora.readable import keep_readable
    from .corpora.rows import LABELS, audio_dataset
    from .corpora.table import load_table
    from .corpora.wavefake import load_wavefake
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
    "load_asvspoof5",
    "load_asvspoof2019",
    "load_asvspoof2021",
    "load_audio",
    "load_corpus",
    "load_fake_or_real",
    "load_folder",
    "load_in_the_wild",
    "load_mlaad",
    "load_table",
    "load_wavefake",
    "recognise",
    "resample",
    "write_corpus",
]
