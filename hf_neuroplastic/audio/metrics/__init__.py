"""Metrics of spoofing detection: equal error rate, detection error trade-off, minimum tandem detection cost."""

try:
    from .equal_error_rate import EqualErrorRate, TandemCosts, detection_error_tradeoff, equal_error_rate, min_tdcf
except ModuleNotFoundError as error:
    raise ImportError(
        f'hf_neuroplastic.audio.metrics needs {error.name}: pip install "hf-neuroplastic[demo]"', name=error.name
    ) from error

__all__ = ["EqualErrorRate", "TandemCosts", "detection_error_tradeoff", "equal_error_rate", "min_tdcf"]
