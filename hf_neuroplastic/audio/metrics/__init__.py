"""Metrics of spoofing detection, each a function and an `evaluate.Metric`."""

try:
    from .detection_cost import DetectionCost, DetectionCosts, act_dcf, min_dcf
    from .equal_error_rate import EqualErrorRate, equal_error_rate, equal_error_rate_interval
    from .log_likelihood_ratio_cost import LogLikelihoodRatioCost, cllr, min_cllr
    from .operating_points import detection_error_tradeoff
    from .tandem_detection_cost import (
        AsvErrors,
        AsvScores,
        TandemCosts,
        TandemDetectionCost,
        asv_errors,
        min_tdcf,
        read_asv_scores,
    )
except ModuleNotFoundError as error:
    raise ImportError(
        f'hf_neuroplastic.audio.metrics needs {error.name}: pip install "hf-neuroplastic[demo]"', name=error.name
    ) from error

__all__ = [
    "AsvErrors",
    "AsvScores",
    "DetectionCost",
    "DetectionCosts",
    "EqualErrorRate",
    "LogLikelihoodRatioCost",
    "TandemCosts",
    "TandemDetectionCost",
    "act_dcf",
    "asv_errors",
    "cllr",
    "detection_error_tradeoff",
    "equal_error_rate",
    "equal_error_rate_interval",
    "min_cllr",
    "min_dcf",
    "min_tdcf",
    "read_asv_scores",
]
